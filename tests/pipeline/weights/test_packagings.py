import copy
import json
import sys

import pytest
import torch
from multitalk_pack.pipeline.errors import Problems, WeightsError
from multitalk_pack.pipeline.model_files import ModelFiles
from multitalk_pack.pipeline.weights import quantization
from multitalk_pack.pipeline.weights.build import load_transformer
from multitalk_pack.pipeline.weights.catalog import check_transformer
from multitalk_pack.pipeline.weights.fit import check_weights
from multitalk_pack.pipeline.weights.key_maps import rename_transformer
from multitalk_pack.pipeline.weights.quantization import QuantizedLinear
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from support.packagings import E4M3, PACKAGINGS, comfy_mixed, fp8_matrices, gguf_file, plain, scaled
from support.tiny_models import adapter_state, base_state, velocity


def reference(numbers, folder):
    """The same numbers in a plain float32 file."""
    save_file(numbers, folder / "reference.safetensors")
    return load_transformer(folder / "reference.safetensors", dtype=torch.float32)


@pytest.mark.parametrize("packaging", PACKAGINGS, ids=lambda packaging: packaging.name)
def test_every_packaging_is_what_its_numbers_say(packaging, tmp_path):
    (tmp_path / "files").mkdir()
    base, adapter, numbers = packaging.write(base_state(), adapter_state(), tmp_path / "files")
    loaded = load_transformer(base, adapter, dtype=torch.float32)
    actual, expected = velocity(loaded), velocity(reference(numbers, tmp_path))
    assert (actual - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert all(tensor.device.type != "meta" for tensor in (*loaded.parameters(), *loaded.buffers()))


def test_each_shard_may_have_the_formats_of_its_own_layers(tmp_path):
    base, adapter, numbers = comfy_mixed(in_header=True)(base_state(), adapter_state(), tmp_path)
    state = load_file(base)
    with safe_open(base, "pt") as file:
        layers = json.loads(file.metadata()["_quantization_metadata"])["layers"]
    for number, block in enumerate(("blocks.0.", "blocks.1.")):
        of_it = [key for key in state if key.startswith(block) or (number == 0 and not key.startswith("blocks."))]
        formats = {"layers": {path: form for path, form in layers.items() if path.startswith(block)}}
        about = {"_quantization_metadata": json.dumps(formats)}
        path = tmp_path / f"model-{number + 1:05d}-of-00002.safetensors"
        save_file({key: state[key] for key in of_it}, path, about)
    actual = velocity(load_transformer(path, adapter, dtype=torch.float32))
    expected = velocity(reference(numbers, tmp_path))
    assert (actual - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_an_adapter_may_be_without_its_last_norm(tmp_path):
    base, adapter, _ = plain(torch.float32)(base_state(), adapter_state(), tmp_path)
    normed = load_transformer(base, adapter, dtype=torch.float32)
    before = velocity(normed)
    save_file({key: t for key, t in adapter_state().items() if "audio_proj.norm" not in key}, adapter)
    check_transformer(base, adapter)
    actual = velocity(load_transformer(base, adapter, dtype=torch.float32))
    normed.audio_proj.norm = torch.nn.Identity()
    assert torch.allclose(actual, velocity(normed), atol=1e-5) and not torch.allclose(actual, before, atol=1e-2)


@pytest.mark.parametrize("packaging", PACKAGINGS, ids=lambda packaging: packaging.name)
def test_headers_are_enough_for_a_description(packaging, tmp_path, tensors_read):
    base, adapter, _ = packaging.write(base_state(), adapter_state(), tmp_path)
    report = check_transformer(base, adapter)
    assert all(name.endswith(".comfy_quant") for name in tensors_read)  # a few bytes that name a format
    assert report.startswith("Wan2.1 I2V 2 blocks of width 256: ")
    if packaging.name == "fp8 e4m3 scaled":
        assert "native names, fp8 e4m3 scaled per tensor and f16" in report


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_floats_are_the_files_own_bit_for_bit(dtype, tmp_path):
    base, adapter, numbers = plain(dtype)(base_state(), adapter_state(), tmp_path)
    model = load_transformer(base, adapter, dtype=torch.float32)
    layers = {path: module for path, module in model.named_modules() if isinstance(module, QuantizedLinear)}
    plain_ones = dict(model.named_parameters())
    for key, tensor in numbers.items():
        name = rename_transformer(key)
        layer = layers.get(name.removesuffix(".weight"))
        assert torch.equal(plain_ones[name] if layer is None else layer.dense(torch.float32), tensor)


def test_matrices_of_the_same_dtype_are_not_copied(tmp_path):
    base, adapter, _ = plain(torch.bfloat16)(base_state(), adapter_state(), tmp_path)
    model = load_transformer(base, adapter)
    assert not any(isinstance(module, QuantizedLinear) for module in model.modules())
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_packed_weights_stay_packed_in_any_dtype(tmp_path):
    base, adapter, _ = scaled(E4M3, False, ".weight", ".scale_weight", True)(base_state(), adapter_state(), tmp_path)
    model = load_transformer(base, adapter, dtype=torch.float32)
    before = velocity(model)
    model.to(torch.float16).to(torch.float32)
    layer = model.blocks[0].ffn.net[2]
    assert layer.data.dtype is torch.uint8 and layer.scale.dtype is torch.uint8
    assert (velocity(model) - before).abs().max() < 0.02 * before.abs().max()  # the vectors were rounded, no more


def test_packed_models_can_be_copied(tmp_path):
    base, adapter, _ = gguf_file("Q4_K")(base_state(), adapter_state(), tmp_path)
    model = load_transformer(base, adapter, dtype=torch.float32)
    assert torch.equal(velocity(copy.deepcopy(model)), velocity(model))


def test_base_and_adapter_may_be_packed_differently(tmp_path):
    for name, write in (("a", gguf_file("Q8_0")), ("b", fp8_matrices(E4M3))):
        (tmp_path / name).mkdir()
        write(base_state(), adapter_state(), tmp_path / name)
    model = load_transformer(tmp_path / "a/base.gguf", tmp_path / "b/audio.safetensors", dtype=torch.float32)
    assert torch.isfinite(velocity(model)).all()


def test_bfloat16_follows_float32(tmp_path):
    base, adapter, _ = plain(torch.float32)(base_state(), adapter_state(), tmp_path)
    expected = velocity(load_transformer(base, adapter, dtype=torch.float32))
    actual = velocity(load_transformer(base, adapter))
    assert (actual - expected).pow(2).mean().sqrt() < 0.02 * expected.pow(2).mean().sqrt()


@pytest.mark.parametrize("kind", ["Q4_K", "fp8"])
def test_a_matrix_is_decoded_alike_in_parts_and_at_once(kind, tmp_path, monkeypatch):
    write = gguf_file(kind) if kind == "Q4_K" else scaled(E4M3, True, ".weight", ".weight_scale", False)
    base, adapter, numbers = write(base_state(), adapter_state(), tmp_path)
    layer = load_transformer(base, adapter).blocks[0].ffn.net[2]
    monkeypatch.setattr(quantization, "CHUNK_BYTES", 1000)
    assert torch.equal(layer.dense(torch.float32), numbers["blocks.0.ffn.2.weight"])


def test_the_speech_encoders_depth_may_be_named(tmp_path):
    base, adapter, _ = plain(torch.float32)(base_state(), adapter_state(), tmp_path)
    assert load_transformer(base, adapter).config.audio_features == (2, 128)
    save_file(adapter_state(), adapter, {"audio_layers": "4"})
    assert load_transformer(base, adapter).config.audio_features == (4, 64)
    assert check_weights(ModelFiles(base, adapter), torch.float32, Problems()).audio_features == (4, 64)
    save_file(adapter_state(), adapter, {"audio_layers": "3"})
    with pytest.raises(WeightsError, match="256 speech features cannot be of 3 layers"):
        load_transformer(base, adapter)


def test_heads_are_taken_from_the_file_where_it_names_them(tmp_path):
    base, adapter, _ = plain(torch.float32)(base_state(), adapter_state(), tmp_path)
    assert load_transformer(base, adapter).config.num_attention_heads == 2
    save_file(base_state(), base, {"num_heads": "8"})
    assert load_transformer(base, adapter).config.num_attention_heads == 8


@pytest.mark.parametrize("form", ["nvfp4", "mxfp8"])
def test_what_comfy_kitchen_decodes(form, tmp_path):
    kitchen = pytest.importorskip("comfy_kitchen")
    base, key = dict(base_state()), "blocks.0.ffn.0"
    weight, numbers = base.pop(f"{key}.weight"), dict(base)
    if form == "nvfp4":
        outer = weight.abs().max() / (6 * 448)
        packed, scale = kitchen.quantize_nvfp4(weight, outer)
        base[f"{key}.weight_scale_2"] = outer
        numbers[f"{key}.weight"] = kitchen.dequantize_nvfp4(packed, outer, scale, torch.float32)
    else:
        packed, scale = kitchen.quantize_mxfp8(weight)
        numbers[f"{key}.weight"] = kitchen.dequantize_mxfp8(packed, scale, torch.float32)
    save_file(base | {f"{key}.weight": packed, f"{key}.weight_scale": scale}, tmp_path / "base.safetensors")
    save_file(adapter_state(), tmp_path / "audio.safetensors")
    model = load_transformer(tmp_path / "base.safetensors", tmp_path / "audio.safetensors", dtype=torch.float32)
    actual, expected = velocity(model), velocity(reference(numbers | adapter_state(), tmp_path))
    assert (actual - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_without_comfy_kitchen_its_formats_are_refused_before_loading(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "comfy_kitchen", None)
    packed = {"blocks.0.ffn.0.weight": torch.zeros(512, 128, dtype=torch.uint8), "blocks.0.ffn.0.weight_scale_2":
              torch.ones(()), "blocks.0.ffn.0.weight_scale": torch.zeros(512, 16).to(E4M3)}  # fmt: skip
    save_file(base_state() | packed, tmp_path / "base.safetensors")
    save_file(adapter_state(), tmp_path / "audio.safetensors")
    with pytest.raises(WeightsError, match="format nvfp4: pip install comfy-kitchen"):
        check_transformer(tmp_path / "base.safetensors", tmp_path / "audio.safetensors")
