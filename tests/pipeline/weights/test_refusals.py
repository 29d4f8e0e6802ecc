"""Files that look like ours are refused by name, in one sentence, from their headers."""

import json

import pytest
import torch
from multitalk_pack.benchmarks.tiny_weights import (
    WeightSizes,
    tiny_adapter,
    tiny_audio_encoder,
    tiny_image_encoder,
    tiny_text_encoder,
    tiny_transformer,
    tiny_vae,
)
from multitalk_pack.pipeline.errors import WeightsError
from multitalk_pack.pipeline.weights.catalog import (
    check_audio_encoder,
    check_image_encoder,
    check_text_encoder,
    check_transformer,
    check_vae,
    transformer_weights,
)
from multitalk_pack.pipeline.weights.lora import LoraStack, check_lora
from safetensors.torch import save_file
from support.tiny_models import adapter_state, base_state, make

E4M3 = torch.float8_e4m3fn


def write(state, path):
    save_file({key: tensor.contiguous() for key, tensor in state.items()}, path)
    return path


def without(state, *parts):
    return {key: tensor for key, tensor in state.items() if not any(part in key for part in parts)}


def patches(channels, width=256):
    return {"patch_embedding.weight": torch.ones(width, channels, 1, 2, 2)}


def plus(*names):
    return {name: torch.ones(2, 2) for name in names}


WRONG_BASES = {
    "text-to-video": (lambda b, a: without(b, "img") | patches(16),
                      r"text-to-video model \(16 input channels\).*image-to-video 14B"),
    "Wan2.2 I2V": (lambda b, a: without(b, "_img", "img_emb"),
                   r"Wan2.2 image-to-video model \(no CLIP image branch\).*Wan2.1"),
    "Wan2.2 5B": (lambda b, a: without(b, "img") | patches(48, 3072), "Wan2.2 TI2V 5B"),
    "1.3B": (lambda b, a: b | patches(36, 1536), "Wan 1.3B"),
    "VACE": (lambda b, a: b | plus("vace_patch_embedding.weight", "vace_blocks.0.x"), "a VACE model"),
    "Fun": (lambda b, a: b | plus("ref_conv.weight"), "Wan Fun model"),
    "Fun camera": (lambda b, a: b | plus("control_adapter.conv.weight"), "Wan Fun model"),
    "Fun control": (lambda b, a: b | patches(100), "100 input channels"),
    "FLF2V": (lambda b, a: b | plus("img_emb.emb_pos"), "first-and-last-frame"),
    "S2V": (lambda b, a: b | plus("casual_audio_encoder.weight"), "Wan2.2 S2V"),
    "HuMo": (lambda b, a: b | plus("audio_proj.audio_proj_glob_1.weight"), "HuMo"),
    "Animate": (lambda b, a: b | plus("face_adapter.fuser.weight"), "Animate"),
    "LiveAct": (lambda b, a: b | plus("blocks.0.self_attn.memory_proj_k.weight"), "a LiveAct model.*MultiTalk needs"),
    "layers of a model to come": (lambda b, a: b | plus("blocks.1.self_attn.gate.weight"),
                                  r"another model than Wan2.1 I2V.*1 tensors more .*blocks.1.self_attn.gate.weight\)"),
    "an OFT as base": (lambda b, a: plus("diffusion_model.blocks.0.self_attn.q.oft_blocks"), "is an OFT adapter"),
    "FantasyTalking": (lambda b, a: b | plus("proj_model.proj.weight"), "FantasyTalking"),
    "adapter as base": (lambda b, a: a, r"contains only MultiTalk's audio weights \(\d+ tensors\).*adapter input"),
    "GGUF without patches": (lambda b, a: without(b, "patch_embedding"), "patch_embedding is missing.*fix_5d_tensors"),
    "truncated model": (lambda b, a: without(b, "blocks.1.ffn"), "lack 2 of the model's layers.*blocks.1.ffn"),
    "a VAE": (lambda b, a: make(tiny_vae), "Wan2.1's VAE. MultiTalk needs the Wan2.1 image-to-video 14B"),
    "something else": (lambda b, a: plus("a.b", "c.d"), "none of the models that MultiTalk uses"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG_BASES)
def test_a_wrong_base_is_named(name, tmp_path):
    alter, message = WRONG_BASES[name]
    base = write(alter(base_state(), adapter_state()), tmp_path / "chosen.safetensors")
    adapter = write(adapter_state(), tmp_path / "audio.safetensors")
    refuse(message, lambda: check_transformer(base, adapter))


WRONG_ADAPTERS = {
    "base as adapter": (lambda b, a: b, "whole Wan2.1 model without audio weights.*into base"),
    "merged as adapter": (lambda b, a: a | b, "choose it as the model, no adapter"),
    "LongCat": (lambda b, a: a | plus("blocks.0.audio_cross_attn.q_norm.weight"), "LongCat-Avatar"),
    "SkyReels": (lambda b, a: a | plus("blocks.0.audio_cross_attn.norm_q.weight"), "SkyReels-V3"),
    "LiveAct": (lambda b, a: a | plus("blocks.1.self_attn.memory_proj_v.weight"), "LiveAct"),
    "no audio attention": (lambda b, a: without(a, "audio_cross_attn"), "no MultiTalk audio attention"),
    "other depth": (lambda b, a: without(a, "blocks.1."), "has 1 blocks of width 256, .* has 2 of width 256"),
    "a LoRA": (lambda b, a: plus("blocks.0.self_attn.q.lora_down.weight"), "is a LoRA. Put it into the LoRA loader"),
    "incomplete": (lambda b, a: without(a, "audio_proj.proj2"), "lack 1 of the model's layers.*audio_proj.proj2"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG_ADAPTERS)
def test_a_wrong_adapter_is_named(name, tmp_path):
    alter, message = WRONG_ADAPTERS[name]
    base = write(base_state(), tmp_path / "base.safetensors")
    adapter = write(alter(base_state(), adapter_state()), tmp_path / "chosen.safetensors")
    refuse(message, lambda: check_transformer(base, adapter))


def test_an_adapter_of_another_width_is_refused(tmp_path):
    base = write(base_state(), tmp_path / "base.safetensors")
    wide = tiny_adapter(WeightSizes(width=384), torch.Generator().manual_seed(1))
    adapter = write(wide, tmp_path / "adapter.safetensors")
    refuse("2 blocks of width 384, base.safetensors has 2 of width 256", lambda: check_transformer(base, adapter))


def test_audio_weights_are_wanted_once(tmp_path):
    base = write(base_state(), tmp_path / "base.safetensors")
    merged = write(base_state() | adapter_state(), tmp_path / "merged.safetensors")
    adapter = write(adapter_state(), tmp_path / "adapter.safetensors")
    refuse("has no audio weights: choose MultiTalk's", lambda: check_transformer(base))
    refuse("already contains the audio weights; leave the adapter empty", lambda: check_transformer(merged, adapter))


def speech(**changes):
    return {f"wav2vec2.{key}": tensor for key, tensor in changes.items()}


POSITIONS = "vision_model.embeddings.position_embedding.weight"
OTHERS = {
    "large wav2vec2": (check_audio_encoder, lambda: make(tiny_audio_encoder) | speech(**{
        "feature_extractor.conv_layers.1.layer_norm.weight": torch.ones(32)}), "large wav2vec2.*chinese-wav2vec2-base"),
    "wide wav2vec2": (check_audio_encoder, lambda: make(tiny_audio_encoder) | speech(**{
        "encoder.layer_norm.bias": torch.ones(1024)}), r"large wav2vec2 model \(2 layers of 1024\)"),
    "deep wav2vec2": (check_audio_encoder, lambda: make(tiny_audio_encoder) | speech(**{
        f"encoder.layers.{i}.attention.k_proj.bias": torch.ones(2) for i in range(24)}), "24 layers of"),
    "fine-tuned wav2vec2": (check_audio_encoder, lambda: make(tiny_audio_encoder) | plus("lm_head.weight"),
                            "fine-tuned for recognition.*lip sync will be wrong"),
    "Whisper": (check_audio_encoder, lambda: plus("model.encoder.embed_positions.weight", "model.encoder.conv1.weight"),
                "Whisper"),
    "fairseq": (check_audio_encoder, lambda: plus("feature_extractor.conv_layers.0.0.weight"), "fairseq"),
    "T5-XXL": (check_text_encoder, lambda: without(make(tiny_text_encoder), "1.layer.0.SelfAttention.relative"),
               "T5 text encoder as Flux and SD3 use it.*UMT5-XXL"),
    "a language model": (check_text_encoder, lambda: without(make(tiny_text_encoder), "relative"), "another family"),
    "ViT-L": (check_image_encoder, lambda: {POSITIONS: torch.ones(257, 1024)}, "ViT-L/14.*ViT-H/14"),
    "SigLIP": (check_image_encoder, lambda: {POSITIONS: torch.ones(729, 1152)}, "SigLIP"),
    "ViT-bigG": (check_image_encoder, lambda: {"visual.positional_embedding": torch.ones(257, 1664)}, "ViT-bigG"),
    "ViT-H at another size": (check_image_encoder, lambda: make(tiny_image_encoder) | {
        "visual.pos_embedding": torch.ones(1, 577, 160)}, "577 positions instead of 257"),
    "Wan2.2's VAE": (check_vae, lambda: make(tiny_vae) | {"conv2.weight": torch.ones(48, 48, 1, 1, 1)},
                     "48-channel Wan2.2 VAE.*16-channel"),
    "an image VAE": (check_vae, lambda: {"decoder.conv_in.weight": torch.ones(8, 4, 3, 3)}, "a VAE of another model"),
    "a preview decoder": (check_vae, lambda: plus("decoder.1.weight", "decoder.22.bias"), "tiny preview decoder"),
    "a transformer as VAE": (check_vae, lambda: make(tiny_transformer), "is Wan2.1 I2V. MultiTalk needs the 16-"),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_a_wrong_part_is_named(name, tmp_path):
    check, state, message = OTHERS[name]
    path = write(state(), tmp_path / "chosen.safetensors")
    refuse(message, lambda: check(path))


def test_a_fine_tuned_speech_encoder_can_be_allowed(tmp_path):
    path = write(make(tiny_audio_encoder) | plus("lm_head.weight"), tmp_path / "base-960h.safetensors")
    assert "base-960h" in check_audio_encoder(path, allow_other=True)


def fp8(state, scale=True):
    key = "blocks.0.ffn.0.weight"
    packed = {key: state[key].to(E4M3), "scaled_fp8": torch.zeros(2, dtype=E4M3)}
    return state | packed | ({"blocks.0.ffn.0.scale_weight": torch.ones(())} if scale else {})


HALF_CONVERTED = {
    "no scale": (lambda b: fp8(b, scale=False), "8-bit weight without its scale.*blocks.0.ffn.net.0.proj"),
    "scaled inputs": (lambda b: fp8(b) | {"blocks.0.ffn.0.pre_quant_scale": torch.ones(256)},
                      "with pre_quant_scale, which is not supported; use fp8_scaled or GGUF"),
    "scale without weight": (lambda b: without(fp8(b), "blocks.0.ffn.0.weight"), "a scale without its weight"),
    "scale of float": (lambda b: b | {"blocks.0.ffn.0.scale_weight": torch.ones(())}, "a weight that is not 8-bit"),
    "int8 without scale": (lambda b: b | {"blocks.0.ffn.0.weight": torch.ones(4, 4, dtype=torch.int8)},
                           "8-bit weight without its scale"),
    "bitsandbytes' int8": (lambda b: b | {"blocks.0.ffn.0.weight": torch.ones(4, 4, dtype=torch.int8),
                                          "blocks.0.ffn.0.SCB": torch.ones(4)},
                           "packed as bitsandbytes' int8, which is not supported; use fp8_scaled, quanto"),
    "bitsandbytes' nf4": (lambda b: b | {"blocks.0.ffn.0.weight": torch.ones(8, 1, dtype=torch.uint8),
                                         "blocks.0.ffn.0.weight.absmax": torch.ones(4)}, "bitsandbytes' 4 bits"),
    "a scale for each column": (lambda b: fp8(b, scale=False) | {"blocks.0.ffn.0.weight_scale": torch.ones(1, 256)},
                                "scales of 1x256 for .* which is not supported: one scale, or one for each row, is"),
    "a scale for each square": (lambda b: fp8(b, scale=False) | {"blocks.0.ffn.0.weight_scale": torch.ones(2, 2)},
                                "scales of 2x2 for"),
    "unknown bytes": (lambda b: b | {"blocks.0.ffn.0.weight": torch.ones(4, 4, dtype=torch.uint8)}, "not supported"),
}  # fmt: skip


@pytest.mark.parametrize("name", HALF_CONVERTED)
def test_half_converted_files_are_refused(name, tmp_path):
    alter, message = HALF_CONVERTED[name]
    base = write(alter(base_state()), tmp_path / "chosen.safetensors")
    refuse(message, lambda: check_transformer(base, write(adapter_state(), tmp_path / "audio.safetensors")))


def test_formats_of_layers_under_unknown_names_are_refused(tmp_path):
    formats = {"layers": {"other.blocks.0.ffn.0": {"format": "int8_tensorwise", "convrot": True}}}
    state = {key: tensor.contiguous() for key, tensor in fp8(base_state()).items()}
    save_file(state, tmp_path / "base.safetensors", {"_quantization_metadata": json.dumps(formats)})
    adapter = write(adapter_state(), tmp_path / "audio.safetensors")
    message = "formats of layers that it does not have .other.blocks.0.ffn.0"
    refuse(message, lambda: check_transformer(tmp_path / "base.safetensors", adapter))


def test_an_int8_text_encoder_of_bitsandbytes_is_named(tmp_path):
    state, key = make(tiny_text_encoder), "encoder.block.0.layer.0.SelfAttention.q"
    state |= {f"{key}.weight": torch.ones(64, 64, dtype=torch.int8), f"{key}.SCB": torch.ones(64),
              f"{key}.weight_format": torch.tensor(0, dtype=torch.uint8)}  # fmt: skip
    path = write(state, tmp_path / "umt5.safetensors")
    refuse("umt5.safetensors is packed as bitsandbytes' int8, which is not supported", lambda: check_text_encoder(path))


@pytest.mark.parametrize("size", [100, 0.5, "many", [4], 4096])
def test_a_rotation_that_cannot_be_is_refused(size, tmp_path):
    formats = {"layers": {"blocks.0.ffn.0": {"convrot": True, "convrot_groupsize": size}}}
    state = {key: tensor.contiguous() for key, tensor in fp8(base_state()).items()}
    save_file(state, tmp_path / "base.safetensors", {"_quantization_metadata": json.dumps(formats)})
    adapter = write(adapter_state(), tmp_path / "audio.safetensors")
    refuse("groups of .* rotated columns", lambda: check_transformer(tmp_path / "base.safetensors", adapter))


def test_a_long_text_about_a_layer_is_refused_unread(tmp_path):
    long = {"blocks.0.ffn.0.comfy_quant": torch.full((70_000,), ord(" "), dtype=torch.uint8)}
    base, adapter = (
        write(fp8(base_state()) | long, tmp_path / "base.safetensors"),
        write(adapter_state(), tmp_path / "a"),
    )
    refuse("a format that cannot be read", lambda: check_transformer(base, adapter))


def test_a_4_bit_weight_without_its_scales_is_refused(tmp_path):
    packed = {"blocks.0.ffn.0.weight": torch.ones(512, 128, dtype=torch.uint8)}
    state = base_state() | packed | {"blocks.0.ffn.0.weight_scale_2": torch.ones(())}
    base, adapter = write(state, tmp_path / "base.safetensors"), write(adapter_state(), tmp_path / "audio.safetensors")
    refuse("a 4-bit weight without its scales", lambda: check_transformer(base, adapter))


def low_rank(layer, adapter=""):
    return plus(f"{layer}.lora_A{adapter}.weight", f"{layer}.lora_B{adapter}.weight")


Q = "diffusion_model.blocks.0.self_attn.q"
WRONG_LORAS = {
    "HunyuanVideo": (plus("diffusion_model.double_blocks.0.img_attn.proj.lora_A.weight"), "was made for HunyuanVideo"),
    "Stable Diffusion": (plus("lora_te_text_model_encoder.lora_down.weight"), "made for Stable Diffusion"),
    "nothing known": (plus("x.y.lora_down.weight", "x.y.lora_up.weight"), "fits no layer.*no such layer"),
    "other width": ({"diffusion_model.blocks.0.self_attn.q.lora_down.weight": torch.ones(4, 3072),
                     "diffusion_model.blocks.0.self_attn.q.lora_up.weight": torch.ones(3072, 4)},
                    "3072x3072 instead of 256x256"),
    "UniAnimate": (plus("dwpose_embedding.0.weight", "blocks.0.self_attn.q.lora_A.weight"), "UniAnimate"),
    "Stand-In": (plus("blocks.0.self_attn.q_loras.down.weight", "blocks.0.self_attn.q_loras.up.weight"), "Stand-In"),
    "control": (plus("patch_embedding.lora_A.weight", "patch_embedding.lora_B.weight"), "control LoRA"),
    "DoRA": (plus("blocks.0.self_attn.q.dora_scale"), "DoRA"),
    "PEFT's DoRA": (low_rank("blocks.0.self_attn.q") | plus("blocks.0.self_attn.q.lora_magnitude_vector"), "a DoRA"),
    "kohya's OFT": (plus("lora_unet_blocks_0_self_attn_q.oft_blocks", "lora_unet_blocks_0_self_attn_q.alpha"),
                    "is an OFT adapter. It is not supported: use a plain LoRA"),
    "LyCORIS's OFT": (plus(f"{Q}.oft_diag"), "is an OFT adapter"),
    "PEFT's OFT": (plus("base_model.model.blocks.0.self_attn.q.oft_R.weight"), "is an OFT adapter"),
    "BOFT": (plus("base_model.model.blocks.0.self_attn.q.boft_R", "base_model.model.blocks.0.self_attn.q.boft_s"),
             "is a BOFT adapter"),
    "GLoRA": (plus(*(f"{Q}.{part}.weight" for part in ("a1", "a2", "b1", "b2"))), "is a GLoRA. It is not supported"),
    "IA3": (plus("base_model.model.blocks.0.self_attn.q.ia3_l"), "is an IA3 adapter"),
    "Tucker": (plus(f"{Q}.lokr_w1", f"{Q}.lokr_w2_a", f"{Q}.lokr_w2_b", f"{Q}.lokr_t2"), "LoRA of convolutions"),
    "two adapters": (low_rank(Q, ".first") | low_rank(Q, ".second"), r"holds 2 LoRAs \(first, second\)"),
    "no LoRA": (plus("conv2.weight"), "none of the models"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG_LORAS)
def test_a_lora_that_fits_nothing_is_refused(name, tmp_path, plain_transformer):
    state, message = WRONG_LORAS[name]
    path, stack = write(state, tmp_path / "chosen.safetensors"), LoraStack(plain_transformer)
    refuse(message, lambda: stack.replace([(path, 1.0)]))
    assert stack.reports == []
    save_file(base_state() | adapter_state(), tmp_path / "whole.safetensors")
    weights, _ = transformer_weights(tmp_path / "whole.safetensors", None)
    refuse(message, lambda: check_lora(path, 1.0, weights))


def test_every_report_of_a_folder_names_what_is_missing(tmp_path):
    (tmp_path / "model-00001-of-00003.safetensors").write_bytes(b"x")
    refuse(r"Shards 2 and 3 of 3 are missing", lambda: check_transformer(tmp_path))
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "one.safetensors"}}))
    refuse(r"Shard 1 of 1 is missing in .*one.safetensors", lambda: check_transformer(tmp_path))


def refuse(message, act):
    with pytest.raises(WeightsError, match=message) as caught:
        act()
    assert "\n" not in str(caught.value) and str(caught.value)[-1] == "."
