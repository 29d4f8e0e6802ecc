"""Cancelling ends a run before the next block, and leaves the model as it was."""

import pytest
import torch
from multitalk_pack.pipeline.generation.passes import cancellable
from multitalk_pack.pipeline.host import TorchHost
from support.transformer import latents, pass_inputs, tiny


class CancellingHost(TorchHost):
    """Cancels from the moment that `is_cancelled` is set."""

    def __init__(self):
        super().__init__("cpu")
        self.is_cancelled = False

    def check_cancelled(self):
        if self.is_cancelled:
            raise KeyboardInterrupt


@pytest.mark.parametrize("last", range(4))
def test_no_block_runs_after_a_cancel(last):
    transformer, host, blocks = tiny(num_layers=4), CancellingHost(), []

    def count(index):
        def hook(*_):
            blocks.append(index)
            host.is_cancelled = index == last

        return hook

    for index, block in enumerate(transformer.blocks):
        block.register_forward_hook(count(index))
    with torch.no_grad(), cancellable(transformer, host):
        if last == 3:
            transformer(latents(), 500.0, pass_inputs(transformer))
        else:
            with pytest.raises(KeyboardInterrupt):
                transformer(latents(), 500.0, pass_inputs(transformer))
    assert blocks == list(range(last + 1))
    assert not any(block._forward_pre_hooks for block in transformer.blocks)
