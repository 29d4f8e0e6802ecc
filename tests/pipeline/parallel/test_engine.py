"""Whole runs on several ranks: the frames of one process, and each decision taken by all ranks alike."""

import multiprocessing
import os
import time
from functools import partial

import pytest
import torch
from multitalk_pack.pipeline.acceleration.attention_kernels import AttentionKernel
from multitalk_pack.pipeline.acceleration.caches import CacheKind
from multitalk_pack.pipeline.acceleration.compilation import Compile
from multitalk_pack.pipeline.acceleration.presets import AccelerationOptions
from multitalk_pack.pipeline.errors import NumericalError
from multitalk_pack.pipeline.generation.denoiser import local_denoiser
from multitalk_pack.pipeline.memory.placement import MemoryConfig
from multitalk_pack.pipeline.models.transformer.token_shares import WholeWindow
from multitalk_pack.pipeline.parallel.rank_agreement import RankAgreement
from multitalk_pack.pipeline.parallel.rank_group import Cancelled, RankFailure
from multitalk_pack.pipeline.parallel.split import Layout
from multitalk_pack.pipeline.parallel.ulysses import UlyssesShares
from support import forked, run

pytestmark = pytest.mark.xdist_group("ranks")

GREY = 2 / 255  # a grey level of -1..1
WITHIN_S = 10  # in which all ranks end after a fault
TOKENS, PASSES, BOTH = Layout(1, 2), Layout(2, 1), Layout(2, 2)


def frames(model, layout=None, num_speakers=1, num_frames=13, host=None, **options):
    """The frames of a run of two windows; on the ranks of a layout, or in one process."""
    make_denoiser = local_denoiser
    if layout is not None:
        agreement = RankAgreement(layout, torch.device("cpu"))
        make_denoiser = partial(local_denoiser, agreement=agreement)
        model.set_shares(partial(UlyssesShares, agreement.pass_ranks) if layout.tokens > 1 else WholeWindow)
    audio, conditioning = run.audio(model, num_frames, num_speakers), run.conditioning(model, num_speakers)
    windows = run.generate(model, audio, conditioning, host=host, make_denoiser=make_denoiser, **options)
    return torch.cat(list(windows), 1)


def difference(model, layout, **options):
    """The largest difference of any rank's frames to those of one process."""
    alone = frames(model, **options)
    together = forked.on_ranks(layout.num_ranks, lambda _: frames(model, layout, **options).numpy())
    return max(abs(alone.numpy() - ours).max() for ours in together)


@pytest.mark.parametrize("layout", [TOKENS, PASSES, BOTH], ids=["tokens", "passes", "both"])
def test_the_frames_are_those_of_one_process(layout):
    for num_speakers in (1, 2):
        assert difference(run.model(), layout, num_speakers=num_speakers) < GREY


@pytest.mark.parametrize("kind", [kind for kind in CacheKind if kind is not CacheKind.NONE])
def test_each_cache_decides_once_for_all(kind):
    options = AccelerationOptions(cache=kind, warmup=2, guidance_until=0.6)
    choices = {"choices": run.config(steps=8), "acceleration": options, "num_frames": 9}
    assert difference(run.model(), BOTH, **choices) < GREY


def test_blocks_are_streamed_as_on_one_device():
    assert difference(run.model(), TOKENS, memory=MemoryConfig(resident_blocks=0)) < GREY


@pytest.mark.long
def test_blocks_are_compiled_as_on_one_device():
    options = AccelerationOptions(compile=Compile.ON)
    assert difference(run.model(num_layers=1), TOKENS, num_frames=9, acceleration=options) < GREY


def on_one_rank(rank, at_call, fault):
    """A hook of a block that acts on one rank, once."""
    calls = []

    def hook(*_):
        calls.append(0)
        if len(calls) == at_call and int(os.environ["RANK"]) == rank:
            fault()

    return hook


def outcomes(layout, fault, at_call=3, **options):
    """The frames or the error of each rank, when the last of them meets a fault in a block."""
    model, fault_s = run.model(), multiprocessing.Value("d", 0.0)

    def timed_fault():
        fault_s.value = time.monotonic()
        fault()

    def work(rank):
        model.blocks[1].register_forward_hook(on_one_rank(layout.num_ranks - 1, at_call, timed_fault))
        try:
            return frames(model, layout, **options).numpy()
        except (Cancelled, NumericalError, RankFailure, torch.OutOfMemoryError, ZeroDivisionError) as error:
            assert time.monotonic() - fault_s.value < WITHIN_S
            return type(error).__name__, str(error)

    return forked.on_ranks(layout.num_ranks, work)


def raising(error):
    def fault():
        raise error

    return fault


@pytest.mark.parametrize("layout", [TOKENS, PASSES, BOTH], ids=["tokens", "passes", "both"])
def test_a_cancel_on_one_rank_ends_all(layout):
    assert {kind for kind, _ in outcomes(layout, raising(Cancelled()))} == {"Cancelled"}


@pytest.mark.parametrize("layout", [TOKENS, BOTH], ids=["tokens", "both"])
def test_after_a_lack_of_memory_on_one_rank_its_pass_goes_on_streamed(layout):
    alone = frames(run.model()).numpy()
    for ours in outcomes(layout, raising(torch.OutOfMemoryError("full"))):
        assert abs(alone - ours).max() < GREY


@pytest.mark.parametrize("layout", [TOKENS, PASSES, BOTH], ids=["tokens", "passes", "both"])
def test_a_lack_of_memory_that_cannot_be_mended_ends_all(layout):
    streamed = {"memory": MemoryConfig(resident_blocks=0)}
    results = outcomes(layout, raising(torch.OutOfMemoryError("full")), **streamed)
    assert results == [("OutOfMemoryError", "full")] * layout.num_ranks


@pytest.mark.parametrize("layout", [TOKENS, PASSES], ids=["tokens", "passes"])
def test_after_bad_numbers_on_one_rank_all_take_plain_attention(layout):
    bad = NumericalError("The latents are not finite.")
    alone = frames(run.model(), acceleration=AccelerationOptions(attention=AttentionKernel.MATH)).numpy()
    for ours in outcomes(layout, raising(bad)):
        assert abs(alone - ours).max() < GREY
    plain = AccelerationOptions(attention=AttentionKernel.MATH)
    results = outcomes(layout, raising(bad), acceleration=plain)
    assert results == [("NumericalError", "The latents are not finite.")] * layout.num_ranks


def test_a_bug_on_one_rank_names_the_rank():
    results = outcomes(TOKENS, raising(ZeroDivisionError("by zero")))
    assert results == [("RankFailure", "Rank 1 failed: ZeroDivisionError: by zero"), ("ZeroDivisionError", "by zero")]
