"""Compiled blocks: when they are, without a compiler, and for more sizes than torch expects."""

from functools import partial
from itertools import pairwise

import pytest
import torch
from multitalk_pack.pipeline.acceleration import compilation
from multitalk_pack.pipeline.acceleration.compilation import Compile, compiled, compiler_failure
from multitalk_pack.pipeline.acceleration.presets import AccelerationOptions, accelerated
from multitalk_pack.pipeline.shapes import LatentSize
from support.transformer import latents, pass_inputs, tiny
from torch._dynamo.utils import counters

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def eager_backend(monkeypatch):
    """A compiler that traces and generates no code."""
    monkeypatch.setattr(compilation, "compiler_failure", lambda device: None)
    transformer = tiny()
    transformer.compile_repeated_blocks = partial(transformer.compile_repeated_blocks, backend="eager")
    torch._dynamo.reset()
    yield transformer
    torch._dynamo.reset()


@pytest.mark.parametrize(
    ("choice", "device", "steps", "applies"),
    [
        (Compile.AUTO, GPU, 40, True),
        (Compile.AUTO, GPU, 8, False),  # a minute is more than they take
        (Compile.AUTO, CPU, 40, False),
        (Compile.ON, CPU, 1, True),
        (Compile.OFF, GPU, 40, False),
    ],
)
def test_blocks_are_compiled_where_it_pays(choice, device, steps, applies):
    assert choice.applies(device, steps) == applies


def test_without_a_compiler_the_blocks_run_as_they_are(monkeypatch, caplog):
    def no_triton(*_, **__):
        raise RuntimeError("Cannot find a working triton installation.\nMore lines.")

    compiler_failure.cache_clear()
    monkeypatch.setattr(torch, "compile", no_triton)
    transformer = tiny()
    with accelerated(transformer, AccelerationOptions(compile=Compile.ON), CPU, steps=1):
        assert all(block._compiled_call_impl is None for block in transformer.blocks)
        transformer(latents(), 500.0, pass_inputs(transformer))
    assert "The blocks are not compiled: Cannot find a working triton installation." in caplog.text
    compiler_failure.cache_clear()


def test_blocks_are_restored(eager_backend):
    with pytest.raises(KeyError), compiled(eager_backend, CPU):
        assert all(block._compiled_call_impl is not None for block in eager_backend.blocks)
        raise KeyError
    assert all(block._compiled_call_impl is None for block in eager_backend.blocks)


@pytest.mark.parametrize(("num_sizes", "torch_limit"), [(2, 1), pytest.param(11, 8, marks=pytest.mark.long)])
def test_every_one_of_many_sizes_is_compiled(eager_backend, num_sizes, torch_limit):
    """By itself torch gives up after eight."""
    sizes = [LatentSize(2, 4, 2 * n) for n in range(2, 2 + num_sizes)]
    counts = []
    with torch._dynamo.config.patch(recompile_limit=torch_limit), compiled(eager_backend, CPU):
        for size in sizes:
            eager_backend(latents(size), 500.0, pass_inputs(eager_backend, 2, size))
            counts.append(counters["stats"]["unique_graphs"])
    assert all(after > before for before, after in pairwise(counts)), counts
