import copy
import time

import pytest
import torch
from multitalk.pipeline.weights.build import load_transformer
from multitalk.pipeline.weights.catalog import check_transformer
from multitalk.pipeline.weights.quantization import QuantizedLinear
from safetensors.torch import save_file
from support.packagings import E4M3, PACKAGINGS, fp8_matrices, gguf_file, plain, scaled
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
    got, wanted = velocity(loaded), velocity(reference(numbers, tmp_path))
    assert (got - wanted).abs().max() <= 1e-5 * wanted.abs().max()
    assert all(tensor.device.type != "meta" for tensor in (*loaded.parameters(), *loaded.buffers()))


@pytest.mark.parametrize("packaging", PACKAGINGS, ids=lambda packaging: packaging.name)
def test_headers_alone_tell_what_it_is(packaging, tmp_path):
    base, adapter, _ = packaging.write(base_state(), adapter_state(), tmp_path)
    start = time.perf_counter()
    report = check_transformer(base, adapter)
    assert time.perf_counter() - start < 0.5
    assert report.startswith("Wan2.1 I2V 2 blocks of width 256: ")
    if packaging.name == "fp8 e4m3 scaled":
        assert "native names, fp8 e4m3 scaled per tensor and f16" in report


def test_float_packagings_load_exactly(tmp_path):
    base, adapter, numbers = plain(torch.float16)(base_state(), adapter_state(), tmp_path)
    assert torch.equal(velocity(load_transformer(base, adapter, dtype=torch.float32)),
                       velocity(reference(numbers, tmp_path)))  # fmt: skip


def test_matrices_of_the_same_dtype_are_not_copied(tmp_path):
    base, adapter, _ = plain(torch.bfloat16)(base_state(), adapter_state(), tmp_path)
    model = load_transformer(base, adapter)
    assert not any(isinstance(module, QuantizedLinear) for module in model.modules())
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_packed_weights_stay_packed_whatever_dtype_is_asked_for(tmp_path):
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
    wanted = velocity(load_transformer(base, adapter, dtype=torch.float32))
    got = velocity(load_transformer(base, adapter))
    assert (got - wanted).pow(2).mean().sqrt() < 0.02 * wanted.pow(2).mean().sqrt()


def test_heads_are_taken_from_the_file_where_it_names_them(tmp_path):
    base, adapter, _ = plain(torch.float32)(base_state(), adapter_state(), tmp_path)
    assert load_transformer(base, adapter).config.num_attention_heads == 2
    assert load_transformer(base, adapter, num_heads=4).config.num_attention_heads == 4
    save_file(base_state(), base, {"num_heads": "8"})
    assert load_transformer(base, adapter).config.num_attention_heads == 8
