"""VAE, text, image and speech encoders in every packaging, against the same numbers in one plain file."""

import json
import shutil

import gguf
import pytest
import sentencepiece
import torch
from diffusers import AutoencoderKLWan
from multitalk_pack.benchmarks.tiny_weights import (
    WeightSizes,
    tiny_audio_encoder,
    tiny_image_encoder,
    tiny_text_encoder,
    tiny_tokenizer,
    tiny_vae,
)
from multitalk_pack.pipeline.errors import WeightsError
from multitalk_pack.pipeline.weights.build import load_audio_encoder, load_image_encoder, load_text_encoder, load_vae
from multitalk_pack.pipeline.weights.key_maps import native_text_key, rename_clip, rename_vae, rename_wav2vec2
from safetensors.torch import save_file
from support.packagings import add_to_gguf, quantize

SIZES = WeightSizes()
E4M3 = torch.float8_e4m3fn
LLAMA_CPP = {
    "shared": "token_embd", "encoder.final_layer_norm": "enc.output_norm", "layer.0.layer_norm": "attn_norm",
    "layer.1.layer_norm": "ffn_norm", "layer.0.SelfAttention.relative_attention_bias": "attn_rel_b",
    "layer.0.SelfAttention.": "attn_", "layer.1.DenseReluDense.wi_0": "ffn_gate",
    "layer.1.DenseReluDense.wi_1": "ffn_up", "layer.1.DenseReluDense.wo": "ffn_down", "encoder.block.": "enc.blk.",
}  # fmt: skip


def make(part):
    return part(SIZES, torch.Generator().manual_seed(4))


def written(state, path, **metadata):
    path.parent.mkdir(exist_ok=True)
    save_file({key: tensor.contiguous() for key, tensor in state.items()}, path, metadata or None)
    return path


def decoded(vae):
    return torch.cat(list(vae.decode(torch.randn(16, 2, 4, 4, generator=torch.Generator().manual_seed(5)))), dim=1)


@pytest.mark.parametrize(
    "packaging", ["native", "model. prefix", "vae. prefix", "diffusers", ".pth", "bfloat16", "fp8"]
)
def test_vae(packaging, tmp_path):
    native = make(tiny_vae)
    numbers, path = native, tmp_path / "wan_vae.safetensors"
    if packaging.endswith(" prefix"):
        written({packaging.removesuffix(" prefix") + key: tensor for key, tensor in native.items()}, path)
    elif packaging == "diffusers":
        written({rename_vae(key): t for key, t in native.items()}, tmp_path / "vae/diffusion_pytorch_model.safetensors")
        path = tmp_path
    elif packaging == ".pth":
        torch.save(native, path := tmp_path / "Wan2.1_VAE.pth")
    else:
        dtype = {"bfloat16": torch.bfloat16, "fp8": E4M3}.get(packaging, torch.float32)
        stored = {key: tensor.to(dtype) for key, tensor in native.items()}
        numbers = {key: tensor.float() for key, tensor in stored.items()}
        written(stored, path)
    expected = load_vae(written(numbers, tmp_path / "r/reference.safetensors"))
    assert torch.equal(decoded(load_vae(path)), decoded(expected))


def test_light_vae_is_narrower_in_its_decoder(tmp_path):
    with torch.device("meta"):
        live = AutoencoderKLWan(base_dim=8, decoder_base_dim=4).state_dict()
    state = {key: torch.randn(tensor.shape) * 0.1 for key, tensor in live.items()}
    assert load_vae(written(state, tmp_path / "lightvae.safetensors")).model.config.decoder_base_dim == 4


def llama_cpp_name(key):
    for ours, theirs in LLAMA_CPP.items():
        key = key.replace(ours, theirs)
    return key


def text_gguf(state, path, kind, with_tokenizer):
    writer, numbers = gguf.GGUFWriter(path, "t5encoder"), {}
    for key, tensor in state.items():
        packs = tensor.ndim == 2 and "relative" not in key
        numbers[key] = add_to_gguf(writer, llama_cpp_name(key), tensor, kind if packs else "")
    if with_tokenizer:
        pieces = sentencepiece.SentencePieceProcessor(model_proto=tiny_tokenizer())
        ids = range(pieces.vocab_size())
        writer.add_tokenizer_model("t5")
        writer.add_token_list([pieces.id_to_piece(i) for i in ids])
        writer.add_token_scores([pieces.get_score(i) for i in ids])
        writer.add_token_types([2 if pieces.is_unknown(i) else 3 if pieces.is_control(i) else 1 for i in ids])
        writer.add_eos_token_id(1)
        writer.add_pad_token_id(0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return numbers


TEXT = ("native", "HF folder", "float16", "fp8 scaled", "native fp8", "quanto int8", "LightX2V int8", "GGUF Q8_0",
        "GGUF Q4_0", "encoder-decoder")  # fmt: skip


@pytest.mark.parametrize("packaging", TEXT)
def test_text_encoder(packaging, tmp_path):
    state = make(tiny_text_encoder)
    tokenizer = state.pop("spiece_model")
    (tmp_path / "spiece.model").write_bytes(bytes(tokenizer.numpy()))
    numbers, path = dict(state), tmp_path / "text.safetensors"
    if packaging == "native":
        torch.save({native_text_key(key): tensor for key, tensor in state.items()}, path := tmp_path / "models_t5.pth")
    elif packaging == "HF folder":
        (tmp_path / "tokenizer").mkdir()
        shutil.move(tmp_path / "spiece.model", tmp_path / "tokenizer/spiece.model")
        alias = {"encoder.embed_tokens.weight": state["shared.weight"].clone()}
        written(state | alias, tmp_path / "text_encoder/model.safetensors")
        path = tmp_path
    elif packaging == "encoder-decoder":
        decoder = {"decoder.block.0.layer.0.SelfAttention.q.weight": torch.ones(4, 4)}
        written(state | decoder | {"lm_head.weight": torch.ones(9, 4)}, path)
    elif packaging.startswith("GGUF"):
        numbers = text_gguf(state, path := tmp_path / "umt5.gguf", packaging.split()[1], with_tokenizer=False)
    else:
        stored, numbers = pack_text(state, packaging)
        written(stored, path)
    reference = written(numbers | {"spiece_model": tokenizer}, tmp_path / "r/reference.safetensors")
    actual = load_text_encoder(path, dtype=torch.float32).encode("A woman sings in a warm room.")
    expected = load_text_encoder(reference, dtype=torch.float32).encode("A woman sings in a warm room.")
    assert (actual - expected).abs().max() <= 1e-5


def pack_text(state, packaging):
    """Stored tensors and the numbers that they stand for."""
    stored, numbers = {}, {}
    for key, tensor in state.items():
        native = native_text_key(key)
        path = native.removesuffix(".weight")
        linear = tensor.ndim == 2 and "relative" not in key and key != "shared.weight"
        if packaging == "float16":
            stored[key] = tensor.half()
            numbers[key] = stored[key].float()
        elif packaging == "native fp8":
            stored[native] = tensor.to(E4M3) if tensor.ndim == 2 else tensor
            numbers[key] = stored[native].float()
        elif not linear:
            name = key if packaging == "fp8 scaled" else native
            stored[name] = numbers[key] = tensor
        elif packaging == "fp8 scaled":
            stored[key], scale = quantize(tensor, E4M3, per_row=False)
            stored[key.removesuffix(".weight") + ".scale_weight"] = scale
            numbers[key] = stored[key].float() * scale
        else:
            names = (".weight._data", ".weight._scale") if packaging == "quanto int8" else (".weight", ".weight_scale")
            stored[path + names[0]], stored[path + names[1]] = quantize(tensor, torch.int8, per_row=True)
            numbers[key] = stored[path + names[0]].float() * stored[path + names[1]]
    return stored, numbers


def test_a_tokenizer_is_rebuilt_from_ggufs_metadata(tmp_path):
    state = make(tiny_text_encoder)
    original = sentencepiece.SentencePieceProcessor(model_proto=bytes(state.pop("spiece_model").numpy()))
    text_gguf(state, tmp_path / "umt5.gguf", "Q8_0", with_tokenizer=True)
    rebuilt = load_text_encoder(tmp_path / "umt5.gguf")
    for text in ("A woman is talking to the camera.", "Two people sit at a table!", "wörld 0123"):
        assert rebuilt.tokenize(text) == [*original.encode(text), 1]


def test_a_tokenizer_that_is_missing_or_another_file_is_named(tmp_path):
    state = make(tiny_text_encoder)
    del state["spiece_model"]
    path = written(state, tmp_path / "text.safetensors")
    with pytest.raises(WeightsError, match="has no tokenizer inside"):
        load_text_encoder(path)
    shutil.copy(path, tmp_path / "spiece.model")
    with pytest.raises(WeightsError, match="is no sentencepiece model"):
        load_text_encoder(path)


def test_a_packed_text_encoder_stays_packed(tmp_path):
    state = make(tiny_text_encoder)
    stored, _ = pack_text({k: t for k, t in state.items() if k != "spiece_model"}, "native fp8")
    encoder = load_text_encoder(written(stored | {"spiece_model": state["spiece_model"]}, tmp_path / "t.safetensors"))
    packed = sum(p.nbytes for p in encoder.model.parameters() if p.dtype is torch.uint8)
    assert packed == sum(t.nbytes for k, t in stored.items() if t.dtype is E4M3 and "pos_embedding" not in k)
    assert torch.isfinite(encoder.encode("A man")).all()


def open_clip(native):
    """OpenCLIP's own names."""
    spelling = {"cls_embedding": "class_embedding", "pos_embedding": "positional_embedding",
                "patch_embedding": "conv1", "pre_norm": "ln_pre", "post_norm": "ln_post",
                "transformer.": "transformer.resblocks.", ".norm1": ".ln_1", ".norm2": ".ln_2",
                ".attn.to_qkv.": ".attn.in_proj_", ".attn.proj": ".attn.out_proj", ".mlp.0": ".mlp.c_fc",
                ".mlp.2": ".mlp.c_proj"}  # fmt: skip
    state = {}
    for key, tensor in native.items():
        for ours, theirs in spelling.items():
            key = key.replace(ours, theirs)
        state[key] = tensor.flatten() if "class_embedding" in key else tensor
    state["visual.positional_embedding"] = state["visual.positional_embedding"][0]
    return state


IMAGE = (
    "native with text", "visual only", "Comfy", "clip_vision. prefix", "model. prefix", "diffusers", "OpenCLIP",
    "OpenCLIP with text", "int8 .pth",
)  # fmt: skip


@pytest.mark.parametrize("packaging", IMAGE)
def test_image_encoder(packaging, tmp_path):
    native = make(tiny_image_encoder)
    numbers, path = native, tmp_path / "clip.safetensors"
    hf = rename_clip(native)
    if packaging == "native with text":
        torch.save(native | {"textual.token_embedding.weight": torch.ones(9, 4), "log_scale": torch.ones(())},
                   path := tmp_path / "models_clip.pth")  # fmt: skip
    elif packaging == "visual only":
        written(native | {"log_scale": torch.ones(())}, path)
    elif packaging == "Comfy":
        extra = {"visual_projection.weight": torch.ones(8, 160)}
        written({f"vision_model.{key}": tensor for key, tensor in hf.items()} | extra, path)
    elif packaging.endswith(" prefix"):
        prefix = packaging.removesuffix(" prefix")
        written({f"{prefix}vision_model.{key}": tensor for key, tensor in hf.items()}, path)
    elif packaging == "diffusers":
        written({f"vision_model.{key}": t for key, t in hf.items()}, tmp_path / "image_encoder/model.safetensors")
        (tmp_path / "image_encoder/config.json").write_text(json.dumps({"num_attention_heads": 2}))
        path = tmp_path
    elif packaging == "OpenCLIP":
        written(open_clip(native), path)
    elif packaging == "OpenCLIP with text":
        text = {"token_embedding.weight": torch.ones(9, 4), "positional_embedding": torch.ones(7, 4),
                "transformer.resblocks.0.ln_1.weight": torch.ones(4), "ln_final.weight": torch.ones(4)}  # fmt: skip
        written(open_clip(native) | text, path)
    else:
        stored, numbers = {}, {}
        for key, tensor in native.items():
            if tensor.ndim == 2 and "transformer" in key:
                stored[key], scale = quantize(tensor, torch.int8, per_row=True)
                stored[key.replace(".weight", ".weight_scale")] = scale
                numbers[key] = stored[key].float() * scale
            else:
                stored[key] = numbers[key] = tensor
        torch.save(stored, path := tmp_path / "clip.pth")
    frame = torch.rand(3, 30, 20, generator=torch.Generator().manual_seed(6)) * 2 - 1
    expected = load_image_encoder(written(numbers, tmp_path / "r/reference.safetensors"), torch.float32).encode(frame)
    assert torch.equal(load_image_encoder(path, torch.float32).encode(frame), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_an_image_encoder_keeps_its_files_dtype(dtype, tmp_path):
    state = {key: tensor.to(dtype) for key, tensor in make(tiny_image_encoder).items()}
    assert load_image_encoder(written(state, tmp_path / "clip.safetensors")).model.dtype is dtype


@pytest.mark.parametrize("packaging", ["published", "fp16", "HF folder of .bin", "no prefix, new names"])
def test_audio_encoder(packaging, tmp_path):
    state = make(tiny_audio_encoder)
    numbers, path = state, tmp_path / "wav2vec2.safetensors"
    heads = {"quantizer.codevectors": torch.ones(1, 4), "project_q.weight": torch.ones(4, 4)}
    if packaging == "published":
        written(state | heads, path)
    elif packaging == "fp16":
        stored = {key: tensor.half() for key, tensor in state.items()}
        numbers = {key: tensor.float() for key, tensor in stored.items()}
        written(stored, path)
    elif packaging == "HF folder of .bin":
        (tmp_path / "hf").mkdir()
        torch.save(state | heads, tmp_path / "hf/pytorch_model.bin")
        (tmp_path / "hf/config.json").write_text(json.dumps({"num_attention_heads": 2}))
        (tmp_path / "hf/preprocessor_config.json").write_text(json.dumps({"do_normalize": True}))
        path = tmp_path / "hf"
    else:
        written({rename_wav2vec2(key): tensor for key, tensor in state.items()}, path)
    expected = load_audio_encoder(written(numbers, tmp_path / "r/reference.safetensors"))
    actual = load_audio_encoder(path)
    waveform = torch.randn(1, 4000, generator=torch.Generator().manual_seed(7))
    with torch.inference_mode():
        assert torch.equal(actual(waveform).last_hidden_state, expected(waveform).last_hidden_state)
    assert actual.config.do_normalize == (packaging == "HF folder of .bin")
    assert not actual.training
