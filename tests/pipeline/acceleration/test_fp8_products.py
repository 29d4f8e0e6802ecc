"""Products of float8 weights as they are stored: near the decoded product, on the layers and devices that can."""

import logging

import pytest
import torch
from multitalk_pack.pipeline.acceleration import fp8_products as products
from multitalk_pack.pipeline.acceleration.presets import AccelerationOptions, accelerated, preset
from multitalk_pack.pipeline.config import Acceleration
from multitalk_pack.pipeline.weights.lora_layouts import DIFF, DOWN, UP, Full, LowRank
from multitalk_pack.pipeline.weights.quantization import FP8, Numbers, PackedMatrix, QuantizedLinear, to_bytes
from support import run

IN, OUT, RANK, TOKENS = 96, 64, 4, 40
FP8_STEP = 2**-4  # half of the distance between neighbours of 1 with 3 bits


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def fp8_layer(scale_rows=OUT, dtype=torch.float8_e4m3fn, compute_dtype=torch.bfloat16, out=OUT):
    numbers = run.random((out, IN), 1).to(dtype)
    scale = 0.5 + run.random((min(scale_rows, out), 1), 2).abs()
    return QuantizedLinear(
        PackedMatrix(to_bytes(numbers), Numbers(dtype), to_bytes(scale)),
        (out, IN),
        run.random((out,), 3).to(compute_dtype),
        compute_dtype,
    )


def low_rank(factor=0.5):
    return LowRank({DOWN: run.random((RANK, IN), 4), UP: run.random((OUT, RANK), 5)}, factor)


def relative_error(result, exact):
    return ((result.float() - exact).norm() / exact.norm()).item()


@pytest.mark.parametrize("shape", [(TOKENS, IN), (2, 3, 5, IN)])
@pytest.mark.parametrize("scale_rows", [1, OUT])
@pytest.mark.parametrize("num_loras", [0, 2])
def test_the_stored_product_is_as_near_to_the_decoded_one_as_float8_activations_are(shape, scale_rows, num_loras):
    layer, x = fp8_layer(scale_rows), run.random(shape, 6).bfloat16()
    layer.deltas.extend(low_rank() for _ in range(num_loras))
    exact = torch.nn.functional.linear(x.float(), layer.dense(torch.float32), layer.bias.float())
    decoded = layer(x)
    layer.fp8_product = products.scaled_product
    stored = layer(x)
    assert stored.shape == decoded.shape and stored.dtype is torch.bfloat16
    assert relative_error(decoded, exact) < 0.005 < relative_error(stored, exact) < FP8_STEP / 2


def test_rows_of_any_size_and_of_zeros_are_rounded_by_their_own_scale():
    layer = fp8_layer()
    layer.bias = None
    x = run.random((TOKENS, IN), 6) * torch.logspace(-6, 6, TOKENS)[:, None]
    x[0] = 0
    layer.fp8_product = products.scaled_product
    stored, exact = layer(x.bfloat16()), x.bfloat16().float() @ layer.dense(torch.float32).T
    assert not stored[0].any() and stored.isfinite().all()
    assert max(relative_error(a, b) for a, b in zip(stored[1:], exact[1:], strict=True)) < FP8_STEP


def test_layers_that_cannot_be_multiplied_as_stored_are_decoded():
    with_difference = fp8_layer()
    with_difference.deltas.append(Full({DIFF: torch.ones(OUT, IN)}, 1.0))
    others = [
        fp8_layer(dtype=torch.float8_e5m2), fp8_layer(dtype=torch.int8), fp8_layer(compute_dtype=torch.float16),
        fp8_layer(compute_dtype=torch.float32), fp8_layer(out=40), with_difference,
    ]  # fmt: skip
    assert fp8_layer().stores_fp8 and not any(layer.stores_fp8 for layer in others)
    assert all(isinstance(layer, products.Fp8Layer) for layer in others)


def network_on_fp8():
    model = run.model().to(torch.bfloat16)
    for block in model.blocks:
        block.attn1.to_q = QuantizedLinear(
            PackedMatrix(to_bytes(block.attn1.to_q.weight.to(FP8)), Numbers(FP8)),
            tuple(block.attn1.to_q.weight.shape),
            block.attn1.to_q.bias,
            torch.bfloat16,
        )
    return model


def products_of(model):
    return [block.attn1.to_q.fp8_product for block in model.blocks]


def test_the_presets_multiply_as_stored_where_the_device_can_and_none_never_does(monkeypatch):
    model, cpu = network_on_fp8(), torch.device("cpu")
    monkeypatch.setattr(products, "find_product", lambda device: products.scaled_product)
    for acceleration in (Acceleration.REGULAR, Acceleration.HIGH):
        for steps, text_scale in ((40, 5.0), (4, 1.0)):
            with accelerated(model, preset(acceleration, steps, text_scale), cpu, steps):
                assert set(products_of(model)) == {products.scaled_product}
            assert set(products_of(model)) == {None}
    with accelerated(model, preset(Acceleration.NONE, 40, 5.0), cpu, 40):
        assert set(products_of(model)) == {None}
    with pytest.raises(KeyError), accelerated(model, AccelerationOptions(fp8_products=True), cpu, 40):
        raise KeyError
    assert set(products_of(model)) == {None}


def test_a_device_without_float8_decodes_and_the_log_says_so_once(caplog):
    products.find_product.cache_clear()
    with caplog.at_level(logging.INFO):
        for _ in range(2):
            with products.fp8_products(network_on_fp8(), torch.device("cpu")):
                pass
    assert caplog.text.count("Float8 weights are decoded: cpu has no products of float8") == 1


def no_kernel(*_):
    raise RuntimeError("no kernel\nfor this")


def zeros(x, weight, *_):
    return x.new_zeros(len(x), len(weight))


def test_a_product_that_fails_its_probe_is_replaced(monkeypatch):
    cpu = torch.device("cpu")
    assert products.probe_failure(cpu) is None
    monkeypatch.setattr(products, "scaled_product", no_kernel)
    assert products.probe_failure(cpu) == "no kernel"
    monkeypatch.setattr(products, "scaled_product", zeros)
    assert "their product is off by 1 on" in products.probe_failure(cpu)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("stored", [torch.float8_e4m3fn, torch.float8_e5m2, torch.int8, torch.float16])
def test_decoding_rounds_once(stored, dtype):
    numbers, scale = (3 * run.random((OUT, IN), 1)).to(stored), run.random((OUT, 1), 2)
    decoded = PackedMatrix(to_bytes(numbers), Numbers(stored), to_bytes(scale)).decode(dtype)
    assert torch.equal(decoded, (numbers.float() * scale).to(dtype))


def test_a_low_rank_in_16_bits_is_merged_as_near_as_rounding_lets_it():
    layer = fp8_layer()
    layer.deltas.append(low_rank())
    exact = layer.dense(torch.float32)
    once = relative_error(exact.bfloat16(), exact)
    assert relative_error(layer.dense(torch.bfloat16), exact) < 2 * once < 2**-8
