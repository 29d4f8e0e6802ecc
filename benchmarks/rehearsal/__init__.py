"""Rehearsal of a forward on a fake card: FLOPs, bytes, kernels and memory of the published network, without a GPU."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.shapes import LatentSize

from ..measure import Settings
from ..report import Row
from .fake_card import GB, FakeCard, reason_against
from .ledger import Figures
from .networks import SIZES, fake_inputs, fake_latents, fake_transformer

PACKAGINGS = {"bf16": ("bf16", 0), "fp8": ("fp8", 0), "fp8, LoRA of rank 64": ("fp8", 64), "Q4_K": ("Q4_K", 0)}
TIMESTEP = 500.0


def run(settings: Settings) -> Iterator[Row]:
    """Each size and packaging with one speaker, and the first one with two."""
    reason = reason_against()
    if reason is not None:
        raise SystemExit(f"No rehearsal here: {reason}.")
    for name in settings.sizes or ("480p", "720p"):
        size = SIZES[name]
        for packaging, (kind, lora_rank) in PACKAGINGS.items():
            for num_speakers in (1, 2) if kind == "bf16" else (1,):
                first, later = forwards(size, kind, lora_rank, num_speakers, num_layers=2 if name == "smoke" else 40)
                yield {"case": f"{name}, {packaging}, {num_speakers} speaker(s)"} | _row(first, later)


def forwards(
    size: LatentSize, packaging: str = "bf16", lora_rank: int = 0, num_speakers: int = 1, num_layers: int = 40
) -> tuple[Figures, Figures]:
    """The figures of the first forward of a window, which computes keys and values, and of a later one."""
    with FakeCard(memory=200 * GB) as card:
        transformer = fake_transformer(num_layers, packaging, lora_rank)
        inputs, latents = fake_inputs(transformer, size, num_speakers), fake_latents(size)
        with card.record() as first:
            transformer(latents, TIMESTEP, inputs)
        with card.record() as later:
            transformer(latents, TIMESTEP, inputs)
    return first, later


def _row(first: Figures, later: Figures) -> Row:
    return {
        "TFLOP": later.tflop,
        "attention": later.flops["_scaled_dot_product_flash_attention"] / 1e12,
        "kernels": later.kernels.total(),
        "GB by matmul": later.bytes["matmul"] / GB,
        "by elementwise": (later.bytes["elementwise"] + later.bytes["copy"]) / GB,
        "by decoding": later.decoding_bytes / GB,
        "weights, GB": first.start_bytes / GB,
        "constants": (first.end_bytes - first.start_bytes) / GB,
        "work": later.work_bytes / GB,
        "host waits": later.syncs.total(),
    }
