"""Bytes of compiled blocks, from the buffers that Inductor's fused kernels of a published block read and write.

Inductor traces, lowers and fuses the block with tensors that have shapes but no numbers; no code is generated and none
runs. Its fusions are those for a CPU: for a GPU it has others, which at most join more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch._dynamo.utils import detect_fake_mode
from torch._inductor import compile_fx
from torch._inductor.debug import DebugContext
from torch._inductor.graph import GraphLowering
from torch._inductor.scheduler import ExternKernelSchedulerNode, NopKernelSchedulerNode
from torch._inductor.virtualized import V
from torch._subclasses.fake_tensor import FakeTensorMode

from pipeline.shapes import LatentSize

from .networks import fake_inputs, fake_transformer

DEVICE = "cpu"
WHOLE = (ExternKernelSchedulerNode, NopKernelSchedulerNode)  # products, attention, views: kernels that are not fused
TIMESTEP = 500.0


def fused_bytes(size: LatentSize, num_speakers: int = 1) -> int:
    """Bytes that the fused kernels of a bfloat16 block read and write; products and attention are not in it."""
    kernels: list[int] = []

    def count(module: fx.GraphModule, inputs: Sequence[Tensor], **_: Any) -> Callable[..., Any]:
        kernels.extend(_fused_kernels(module, inputs))
        return module

    def backend(module: fx.GraphModule, inputs: Sequence[Tensor]) -> Callable[..., Any]:
        return compile_fx.compile_fx(module, inputs, inner_compile=count)

    torch._dynamo.reset()
    with torch.inference_mode(False), torch.no_grad(), FakeTensorMode():
        transformer = fake_transformer(1, device=DEVICE)
        context = transformer.block_context(fake_inputs(transformer, size, num_speakers, DEVICE))
        time = transformer.time(TIMESTEP).projection
        tokens = torch.empty(size.num_tokens, time.shape[-1], dtype=transformer.compute_dtype)
        block = transformer.blocks[0]
        block(tokens, time, context)  # keys and values, which later steps reuse
        torch.compile(block, backend=backend, dynamic=False)(tokens, time, context)
    return sum(kernels)


def _fused_kernels(module: fx.GraphModule, inputs: Sequence[Tensor]) -> list[int]:
    """Bytes of each fused kernel of a graph."""
    compile_fx.record_original_output_strides(module)
    with V.set_fake_mode(detect_fake_mode(inputs)):
        compile_fx._recursive_post_grad_passes(module, is_inference=True)
        graph = GraphLowering(module, example_inputs=inputs, is_inference=True)
        with V.set_graph_handler(graph), V.set_debug_handler(DebugContext()):
            graph.run(*inputs)
            graph._update_scheduler()
            nodes = [node for node in graph.scheduler.nodes if not isinstance(node, WHOLE)]
            return [node.get_read_write_buffers_sizes() for node in nodes]
