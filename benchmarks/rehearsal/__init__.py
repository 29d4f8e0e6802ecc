"""Rehearsal of a forward on a fake card: FLOPs, bytes, kernels and memory of the published network, without a GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext

import torch

from pipeline.acceleration.fp8_products import find_product, fp8_products
from pipeline.shapes import LatentSize

from ..measure import Settings
from ..report import Row
from .compiled import fused_bytes
from .fake_card import GB, FakeCard, reason_against
from .ledger import Figures
from .networks import SIZES, fake_inputs, fake_latents, fake_transformer, fake_vae

PACKAGINGS = {
    "bf16": ("bf16", 0, False),
    "fp8": ("fp8", 0, False),
    "fp8, multiplied as stored": ("fp8", 0, True),
    "fp8, LoRA of rank 64": ("fp8", 64, False),
    "fp8, LoRA of rank 64, multiplied as stored": ("fp8", 64, True),
    "Q4_K": ("Q4_K", 0, False),
}
TIMESTEP = 500.0
NUM_BLOCKS = 40


def run(settings: Settings) -> Iterator[Row]:
    """Each size and packaging with one speaker, the first one with two, and the VAE's decoder."""
    reason = reason_against()
    if reason is not None:
        raise SystemExit(f"No rehearsal here: {reason}.")
    for name in settings.sizes or ("480p", "720p"):
        for packaging, (kind, lora_rank, as_stored) in PACKAGINGS.items():
            for num_speakers in (1, 2) if kind == "bf16" else (1,):
                one, two = (
                    forwards(SIZES[name], kind, lora_rank, num_speakers, num_layers, as_stored)[1]
                    for num_layers in (1, 2)
                )
                yield {"case": f"{name}, {packaging}, {num_speakers} speaker(s)"} | _row(one, two)
        terabytes = NUM_BLOCKS * fused_bytes(SIZES[name]) / 1e12
        yield {"case": f"{name}, bf16, 1 speaker(s), compiled blocks", "TB by elementwise and copies": terabytes}
        for dtype in (torch.float32, torch.bfloat16):
            yield {"case": f"{name}, decoder of the VAE in {str(dtype).removeprefix('torch.')}"} | _vae_row(name, dtype)


def forwards(
    size: LatentSize,
    packaging: str = "bf16",
    lora_rank: int = 0,
    num_speakers: int = 1,
    num_layers: int = NUM_BLOCKS,
    as_stored: bool = False,
) -> tuple[Figures, Figures]:
    """The figures of the first forward of a window, which computes keys and values, and of a later one.

    Args:
        as_stored: multiplies float8 weights without decoding them.
    """
    find_product.cache_clear()
    with FakeCard(memory=200 * GB) as card:
        transformer = fake_transformer(num_layers, packaging, lora_rank)
        inputs, latents = fake_inputs(transformer, size, num_speakers), fake_latents(size)
        with fp8_products(transformer, torch.device("cuda")) if as_stored else nullcontext():
            with card.record() as first:
                transformer(latents, TIMESTEP, inputs)
            with card.record() as later:
                transformer(latents, TIMESTEP, inputs)
    find_product.cache_clear()
    return first, later


def _row(one: Figures, two: Figures) -> Row:
    """The figures of all blocks, which are alike, from those of networks of one and of two."""

    def all_blocks(count: Callable[[Figures], float]) -> float:
        return count(one) + (NUM_BLOCKS - 1) * (count(two) - count(one))

    return {
        "TFLOP": all_blocks(lambda figures: figures.tflop),
        "kernels": round(all_blocks(lambda figures: figures.kernels.total())),
        "TB by products": all_blocks(lambda figures: figures.bytes["matmul"] / 1e12),
        "TB by elementwise and copies": all_blocks(
            lambda figures: (figures.bytes["elementwise"] + figures.bytes["copy"]) / 1e12
        ),
        "of them to decode, TB": all_blocks(lambda figures: figures.decoding_bytes / 1e12),
        "work, GB": two.work_bytes / GB,
        "host waits": two.syncs.total(),
    }


def _vae_row(name: str, dtype: torch.dtype) -> Row:
    """The decoder for a whole window: its first latent frame, and the others, which are alike from the third on."""
    size = SIZES[name]
    figures = {}
    for num_latents in (3, 4):
        with FakeCard(memory=200 * GB) as card:
            vae = fake_vae(dtype)
            with card.record() as figures[num_latents]:
                for _ in vae.decode(torch.zeros(16, num_latents, size.h, size.w)):
                    pass
    three, four = figures.values()

    def whole(count: Callable[[Figures], float]) -> float:
        return count(three) + (size.t - 3) * (count(four) - count(three))

    return {
        "TFLOP": whole(lambda figures: figures.tflop),
        "kernels": round(whole(lambda figures: figures.kernels.total())),
        "TB by products": whole(lambda figures: figures.bytes["convolution"] / 1e12),
        "TB by elementwise and copies": whole(
            lambda figures: (figures.bytes["elementwise"] + figures.bytes["copy"]) / 1e12
        ),
        "work, GB": (four.peak_bytes - four.start_bytes) / GB,
        "host waits": four.syncs.total(),
    }
