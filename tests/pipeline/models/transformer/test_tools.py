"""diffusers' tools, and whoever else moves weights around a forward, work on the transformer."""

from functools import partial

import diffusers
import pytest
import torch
from multitalk_pack.pipeline.models.transformer.model import MultiTalkTransformer
from multitalk_pack.pipeline.models.transformer.rope import rotate, rotation
from packaging.version import Version
from support.transformer import latents, pass_inputs, tiny
from torch import nn


def fetch(weights: dict, module: nn.Module, _) -> None:
    """A hook that brings a block's weights."""
    module.load_state_dict(weights, assign=True)


def send_away(module: nn.Module, *_) -> None:
    """A hook that takes a block's weights away."""
    module.to("meta")


@pytest.mark.parametrize("num_speakers", [1, 2])
def test_weights_may_be_away_between_the_blocks_forwards(num_speakers):
    transformer, plain = tiny(), tiny()
    for block, source in zip(transformer.blocks, plain.blocks, strict=True):
        block.to("meta")
        block.register_forward_pre_hook(partial(fetch, source.state_dict()))
        block.register_forward_hook(send_away)
    pass_, want = pass_inputs(transformer, num_speakers), plain(latents(), 500.0, pass_inputs(plain, num_speakers))
    for _ in range(2):
        torch.testing.assert_close(transformer(latents(), 500.0, pass_), want)


@pytest.mark.skipif(
    Version(diffusers.__version__) < Version("0.42") and not torch.cuda.is_available(),
    reason="older diffusers ask for an accelerator: 0.36 fails on a CPU, 0.42.1 does not",
)
@pytest.mark.parametrize(
    "offload", [{"offload_type": "block_level", "num_blocks_per_group": 1}, {"offload_type": "leaf_level"}]
)
def test_group_offload_changes_nothing(offload):
    transformer = tiny()
    want = transformer(latents(), 500.0, pass_inputs(transformer, 2))
    transformer.enable_group_offload(onload_device=torch.device("cpu"), offload_device=torch.device("cpu"), **offload)
    torch.testing.assert_close(transformer(latents(), 500.0, pass_inputs(transformer, 2)), want)


def test_layerwise_casting_stores_the_blocks_matrices_only():
    transformer = tiny().to(torch.bfloat16)
    want = transformer(latents(), 500.0, pass_inputs(transformer, 2))
    transformer.enable_layerwise_casting(torch.float8_e4m3fn, torch.bfloat16)
    stored = {name for name, weight in transformer.named_parameters() if weight.dtype == torch.float8_e4m3fn}
    assert stored and all(name.startswith("blocks.") and "norm" not in name for name in stored)
    velocity = transformer(latents(), 500.0, pass_inputs(transformer, 2))
    assert ((velocity - want).norm() / want.norm()) < 0.2  # what fp8 costs at random weights


@pytest.mark.parametrize("num_speakers", [1, 2])
def test_blocks_can_be_compiled(num_speakers):
    transformer = tiny()
    want = transformer(latents(), 500.0, pass_inputs(transformer, num_speakers))
    transformer.compile_repeated_blocks(backend="eager")
    pass_ = pass_inputs(transformer, num_speakers)
    for _ in range(2):
        torch.testing.assert_close(transformer(latents(), 500.0, pass_), want)


def test_a_compiled_rotation_is_the_eager_one():
    x, angles = torch.randn(6, 2, 8), rotation(torch.arange(6.0), 8)[:, None]
    torch.testing.assert_close(torch.compile(rotate, backend="eager")(x, angles), rotate(x, angles))


def test_a_saved_transformer_comes_back(tmp_path):
    transformer = tiny()
    transformer.save_pretrained(tmp_path)
    again = MultiTalkTransformer.from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
    assert again.compute_dtype == torch.bfloat16
    assert again.blocks[0].scale_shift_table.dtype == again.proj_out.weight.dtype == torch.float32
    velocity = again(latents(), 500.0, pass_inputs(again, 2))
    want = transformer(latents(), 500.0, pass_inputs(transformer, 2))
    assert (velocity - want).norm() / want.norm() < 0.02
