"""Requests, videos and waiting for the tests of the remote run."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
from multitalk_pack.pipeline.audio.waveform import Sound
from multitalk_pack.pipeline.config import Acceleration, GenerationConfig
from multitalk_pack.pipeline.host import Host
from multitalk_pack.pipeline.remote import media
from multitalk_pack.pipeline.remote.collect import RemoteVideo
from multitalk_pack.pipeline.remote.context import RemoteContext
from multitalk_pack.pipeline.remote.endpoints import AI_AVATAR, Endpoint
from multitalk_pack.pipeline.remote.exchange import EXCHANGE_THREAD_NAME, THREAD_NAME
from multitalk_pack.pipeline.remote.job import Job, JobMonitor
from multitalk_pack.pipeline.remote.ledger import Ledger, Row
from multitalk_pack.pipeline.remote.purchase import Resume, run
from multitalk_pack.pipeline.remote.render import follow
from multitalk_pack.pipeline.remote.request import RemoteRequest

RATE_HZ = 8000
NUM_FRAMES = 145


def write_video(path: Path, num_frames: int, level: int = 128, size: int = 32) -> None:
    """An mp4 of even frames, 25 a second; frame `i` is as bright as `level + i`."""
    with av.open(str(path), "w", format="mp4") as file:
        stream = file.add_stream("libx264", rate=Fraction(25), options={"crf": "10"})
        stream.width = stream.height = size
        stream.pix_fmt = "yuv420p"
        for index in range(num_frames):
            picture = np.full((size, size, 3), min(level + index, 255), np.uint8)
            file.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        file.mux(stream.encode())


def make_request(
    prompt: str = "a woman talks", shade: float = 0.5, endpoint: Endpoint = AI_AVATAR, **changes: object
) -> RemoteRequest:
    """A request of one grey portrait and one tone; `changes` are of the configuration."""
    config = GenerationConfig(**{"num_frames": NUM_FRAMES, "acceleration": Acceleration.REGULAR, **changes})
    duration_s = config.num_frames / 25
    files = {
        "image_url": media.encode_image(torch.full((1, 16, 16, 3), shade)),
        endpoint.voices[0]: media.encode_sound(voice(7), duration_s),
    }
    return RemoteRequest(endpoint, prompt, config, files, duration_s)


def voice(duration_s: float, rate_hz: int = RATE_HZ) -> Sound:
    """A tone as a sound of one channel."""
    return Sound(tone(duration_s, rate_hz)[0], rate_hz)


def tone(duration_s: float, rate_hz: int = RATE_HZ) -> torch.Tensor:
    """`1 1 n`: 220 Hz at half of the full level."""
    return 0.5 * torch.sin(torch.arange(round(duration_s * rate_hz)) * (2 * torch.pi * 220 / rate_hz))[None, None]


def until(condition: Callable[[], object], timeout_s: float = 60.0) -> None:
    """Waits for something to become true, and fails if it does not."""
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.005)


def remote_threads() -> list[str]:
    """Threads of remote runs that still live."""
    return [thread.name for thread in threading.enumerate() if thread.name == THREAD_NAME]


def exchange_threads() -> list[str]:
    """Threads of HTTP exchanges that still live."""
    return [thread.name for thread in threading.enumerate() if thread.name == EXCHANGE_THREAD_NAME]


def start(request: RemoteRequest, context: RemoteContext, resume: Resume = Resume.AUTO) -> Job[RemoteVideo]:
    """A run of a request in a thread of its own."""
    return Job(lambda monitor: run(request, context, resume, monitor))


def buy(context: RemoteContext, resume: Resume = Resume.AUTO, **changes: object) -> RemoteVideo:
    """The video of `make_request(**changes)`."""
    return run(make_request(**changes), context, resume, JobMonitor())


def newest(context: RemoteContext, **changes: object) -> Row | None:
    """The ledger's last row of `make_request(**changes)`."""
    return Ledger(context.private).newest(make_request(**changes).job_key(context.key.fingerprint))


def run_on_host(request: RemoteRequest, context: RemoteContext, host: Host) -> RemoteVideo:
    """The video of a request; `host` is told of it, and leaving this early stops the job."""
    return follow(start(request, context), host)
