"""Long audio: cut at pauses, bought in parts, each once, and joined under the user's own sound."""

from dataclasses import replace

import av
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from multitalk_pack.pipeline.audio.waveform import Sound
from multitalk_pack.pipeline.config import GenerationConfig
from multitalk_pack.pipeline.errors import AudioError, RemoteError
from multitalk_pack.pipeline.media.sound import read_sound
from multitalk_pack.pipeline.remote import split
from multitalk_pack.pipeline.remote.answers import JobFailed, JobInterrupted
from multitalk_pack.pipeline.remote.context import Caps
from multitalk_pack.pipeline.remote.endpoints import AI_AVATAR
from multitalk_pack.pipeline.remote.generate import run_request
from multitalk_pack.pipeline.remote.job import Job, JobMonitor
from multitalk_pack.pipeline.remote.ledger import Ledger
from multitalk_pack.pipeline.remote.purchase import Resume
from support.fake_fal import COMPLETED
from support.remote import remote_threads, tone, until, write_video

RATE_HZ = 8000


def speech(duration_s: float, pauses: dict[float, float]) -> Sound:
    """A voice of one tone, silent from each time of `pauses` to its end; rising, so that no two parts are equal."""
    samples = tone(duration_s, RATE_HZ)[0] * torch.linspace(0.5, 1, round(duration_s * RATE_HZ))
    for start_s, end_s in pauses.items():
        samples[:, round(start_s * RATE_HZ) : round(end_s * RATE_HZ)] = 0
    return Sound(samples, RATE_HZ)


@pytest.fixture
def rich_context(context):
    """A context that may spend $20 on a run."""
    return replace(context, caps=Caps(run_usd=20))


@pytest.fixture(scope="module")
def long_video(tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("long") / "part.mp4"
    write_video(path, 241, level=14)
    return path.read_bytes()


def run(context, sound, resume=Resume.AUTO, endpoint=AI_AVATAR, monitor=None):
    picture = torch.full((1, 16, 16, 3), 0.5)
    config = GenerationConfig(145)
    return run_request(
        picture, [sound], "a woman talks", config, endpoint, context, resume, True, monitor or JobMonitor()
    )


def start(context, sound):
    return Job(lambda monitor: run(context, sound, monitor=monitor))


def test_a_cut_falls_into_the_latest_pause():
    parts = split.plan_parts(speech(16, {6.0: 6.4, 8.0: 8.4}))
    assert [part.start for part in parts] == [0, parts[0].num_frames]
    assert 8.1 < parts[0].num_frames / 25 < 8.3 and parts[0].request_frames == parts[0].num_frames
    assert sum(part.num_frames for part in parts) == 400


def test_without_a_pause_the_quietest_moment_is_taken():
    sound = speech(16, {})
    sound.samples[:, round(7.0 * RATE_HZ) : round(7.4 * RATE_HZ)] *= 0.2
    assert 7.1 < split.plan_parts(sound)[0].num_frames / 25 < 7.3


@given(num_samples=st.integers(1, 60 * 400), seed=st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_the_parts_cover_the_sound_and_none_is_too_long(num_samples, seed):
    noise = torch.randn(1, num_samples, generator=torch.Generator().manual_seed(seed))
    parts = split.plan_parts(Sound(noise, 400))
    assert sum(part.num_frames for part in parts) == max(1, round(num_samples / 400 * 25))
    assert [part.start for part in parts[1:]] == list(np.cumsum([part.num_frames for part in parts])[:-1])
    assert all(part.request_frames in range(41, 242, 4) and part.request_frames >= part.num_frames for part in parts)
    assert all(part.num_frames >= 41 for part in parts[1:])
    assert all(part.request_frames == part.num_frames for part in parts[:-1])


def test_a_part_hears_its_own_sound_and_then_silence():
    sound = speech(10, {})
    sound_of_video = split.part_sound(sound, split.Part(200, 50, 53))
    assert sound_of_video.samples.shape[1] == round(53 / 25 * RATE_HZ)
    assert torch.equal(sound_of_video.samples[:, : 2 * RATE_HZ], sound.samples[:, 8 * RATE_HZ :])
    assert not sound_of_video.samples[:, 2 * RATE_HZ :].any()


def test_a_short_sound_is_one_plain_request(fal, context):
    video = run(context, speech(3, {}))
    assert len(fal.submits) == 1 and video.path.read_bytes() == fal.video


def test_long_sound_that_is_none_is_refused_before_anything_is_bought(fal, context):
    sound = speech(14, {})
    sound.samples[:, 50_000] = float("nan")
    with pytest.raises(AudioError, match="NaN or infinite samples"):
        run(context, sound)
    assert not fal.submits


def test_long_sound_is_bought_in_parts_and_joined_exactly(fal, context, long_video):
    fal.video = long_video
    sound = speech(14, {6.0: 6.4})
    video = run(context, sound)
    assert len(fal.submits) == 2 and video.units == 14.5 and "$2.90" in video.info
    assert video.properties.num_frames == 350 and video.properties.has_sound
    sound_of_video = read_sound(video.path)
    assert sound_of_video.rate_hz == RATE_HZ and abs(sound_of_video.duration_s - 14) < 0.15
    quiet = sound_of_video.samples[:, round(6.05 * RATE_HZ) : round(6.35 * RATE_HZ)]
    assert quiet.abs().max() < 0.02
    lags = torch.nn.functional.conv1d(
        sound_of_video.samples[None, :, : 8000 + 80], sound.samples[None, :, 40 : 8000 + 40]
    ).flatten()
    assert int(lags.argmax()) == 40
    first = split.plan_parts(sound)[0].num_frames
    with av.open(str(video.path)) as file:
        levels = [frame.to_ndarray(format="gray").mean() for frame in file.decode(video=0)]
    assert levels[first - 1] > levels[first] + 50  # the second part starts again from its first frame


def test_a_part_that_comes_short_holds_its_last_frame(fal, context, caplog):
    assert run(context, speech(14, {})).properties.num_frames == 350
    assert "its last is held" in caplog.text


def test_a_failed_part_costs_only_that_one(fal, rich_context):
    sound = speech(24, {})
    fal.fault("^GET queue .*/status", "status", status=200, body='{"status": "COMPLETED", "error": "no face"}')
    with pytest.raises(JobFailed, match=r"Part \d of 3 failed: .*no face.*only what is missing"):
        run(rich_context, sound)
    num_jobs = len(fal.submits)
    run(rich_context, sound)
    assert num_jobs in (2, 3) and len(fal.submits) == 4
    num_calls = len(fal.log)
    run(rich_context, sound)
    assert len(fal.log) == num_calls


def test_no_more_than_two_run_at_once(fal, rich_context):
    fal.script = [{"status": "IN_PROGRESS"}] * 20 + [COMPLETED]
    job = start(rich_context, speech(33, {}))
    most = 0
    while job.alive:
        most = max(most, len(remote_threads()) - 1)
        job.join(0.01)
    assert job.result() and most == 2 and len(fal.submits) == 4


def test_a_stop_cancels_every_running_part_once(fal, rich_context):
    fal.script = [{"status": "IN_PROGRESS"}]
    job = start(rich_context, speech(33, {}))
    until(lambda: len({call.path for call in fal.calls("^GET queue .*/status")}) == 2)
    job.monitor.stop()
    with pytest.raises(JobInterrupted):
        job.result()
    assert len(fal.submits) == 2 and len(fal.cancels) == 2 == len({call.path for call in fal.cancels})
    until(lambda: not remote_threads())


def test_long_sound_is_off_above_five_dollars_unless_a_cap_says_otherwise(fal, context):
    sound = speech(33, {})
    with pytest.raises(RemoteError, match=r"MULTITALK_FAL_MAX_USD allows \$5\.00"):
        run(replace(context, caps=Caps()), sound)
    with pytest.raises(RemoteError, match="last 24 hours"):
        run(replace(context, caps=Caps(run_usd=20, day_usd=6)), sound)
    assert fal.log == [] and Ledger(context.private).spending_usd() == 0
