"""Real processes on two devices: a run, a cancel, and the ways in which a process is lost."""

import os
import re
import signal
import time
from functools import partial

import pytest
import torch
from multitalk_pack.benchmarks.tiny_weights import WeightSizes, write_tiny
from multitalk_pack.pipeline.errors import ConfigError, DeviceError
from multitalk_pack.pipeline.multitalk_pipeline import MultiTalkPipeline
from multitalk_pack.pipeline.parallel.ranks import Ranks
from support import run

pytestmark = pytest.mark.xdist_group("ranks")

GREY = 2 / 255  # a grey level of -1..1
WITHIN_S = 10  # in which a lost process is an error


class Host(run.RecordingHost):
    """Acts at the first step of a run, once."""

    def __init__(self):
        super().__init__()
        self.at_step = None

    def report(self, progress, preview=None):
        super().report(progress, preview)
        if progress.step and self.at_step is not None:
            act, self.at_step = self.at_step, None
            act()


@pytest.fixture(scope="module")
def host():
    return Host()


@pytest.fixture(scope="module")
def talk(tmp_path_factory, host):
    sizes = WeightSizes(width=256, layers=2, ffn=128, vae_width=2)
    tiny = write_tiny(tmp_path_factory.mktemp("tiny"), sizes=sizes)
    talk = MultiTalkPipeline.from_files(
        base=tiny.transformer, adapter=tiny.adapter, vae=tiny.vae, text_encoder=tiny.text_encoder,
        image_encoder=tiny.image_encoder, audio_encoder=tiny.audio_encoder, host=host, devices=("cpu", "cpu"),
        split="tokens",
    )  # fmt: skip
    yield talk
    talk.close()


def frames(talk, steps=3):
    model = talk.transformer
    audio, conditioning = run.audio(model, 13), run.conditioning(model)
    spec = run.spec(audio, conditioning, run.config(steps=steps))
    return torch.cat(list(talk.sample(audio, conditioning, spec)), 1)


def windows(talk, host, folder=None):
    """The frames of each window of a run, kept in a folder where one is named."""
    model, make_denoiser = talk.transformer, partial(talk.ranks.denoiser, talk.model)
    inputs = run.audio(model, 13), run.conditioning(model)
    store = None if folder is None else run.open_store(folder, model, *inputs)
    return run.generate(model, *inputs, host=host, make_denoiser=make_denoiser, store=store)


def process_ids(talk):
    return [int((talk.ranks._folder / f"heartbeat.{rank}").read_text()) for rank in range(2)]


def test_two_processes_make_the_frames_of_one_and_stay_warm(talk, host):
    ranks, talk.ranks = talk.ranks, None
    alone = frames(talk)
    talk.ranks = ranks
    host.progress.clear()
    assert (frames(talk) - alone).abs().max() < GREY
    assert {progress.step for progress in host.progress} == {0, 1, 2, 3}
    before = process_ids(talk)

    def cancel():
        raise KeyboardInterrupt

    host.at_step, start_s = cancel, time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        frames(talk, steps=500)
    assert time.monotonic() - start_s < WITHIN_S
    assert (frames(talk) - alone).abs().max() < GREY
    assert process_ids(talk) == before


def test_a_window_in_the_store_is_made_by_no_rank(talk, host, tmp_path):
    whole = torch.cat(list(windows(talk, host)), 1)
    interrupted_run = windows(talk, host, folder=tmp_path)
    next(interrupted_run)
    interrupted_run.close()
    host.progress.clear()
    resumed = torch.cat(list(windows(talk, host, folder=tmp_path)), 1)
    assert {progress.window for progress in host.progress if progress.step} == {2}
    assert (resumed - whole).abs().max() < GREY


@pytest.mark.parametrize(
    ("number", "reason"), [(signal.SIGKILL, "was killed by signal 9"), (signal.SIGSTOP, "stopped answering")]
)
def test_a_lost_process_is_an_error_in_time(talk, host, number, reason):
    lost_s = []

    def lose():
        lost_s.append(time.monotonic())
        os.kill(process_ids(talk)[1], number)

    host.at_step = lose
    with pytest.raises(DeviceError, match=rf"device 1 \(cpu\) {reason}") as error:
        frames(talk, steps=500)
    assert time.monotonic() - lost_s[0] < WITHIN_S
    assert re.search("The end of its log|Its log is empty", str(error.value))
    assert talk.ranks._launcher is None


def test_a_card_is_named_once():
    with pytest.raises(ConfigError, match="named twice"):
        Ranks(("cuda:0", "cuda:0"))
