"""Audio longer than one request: cut at pauses, run as several requests, joined under the user's own sound."""

from __future__ import annotations

import hashlib
import logging
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import av
import numpy as np
import torch
from torch import Tensor

from ..audio.waveform import Sound, check
from ..config import CARD_NUM_FRAMES
from ..errors import RemoteError
from ..media.video import VideoWriter
from ..shapes import FPS, VAE_STRIDE_TIME, nearest_num_frames
from .answers import JobStopped
from .collect import RemoteVideo
from .context import RemoteContext
from .generate import Resume, check_affordable, run
from .job import Job, JobMonitor
from .ledger import Ledger
from .media import probe
from .payload import PriceEstimate, RemoteRequest

logger = logging.getLogger(__name__)

CONCURRENT = 2  # jobs that a new account may run at once; what is over would only wait in fal's queue
SHORTEST, LONGEST = CARD_NUM_FRAMES[0], CARD_NUM_FRAMES[-1]
EARLIEST_CUT = 121  # no pause is worth a shorter part, unless the sound ends
PAUSE_S = 0.2  # that has to be quiet for a cut
PAUSE_LEVEL = 1e-4  # of the loudest energy: -40 dB
QUIET_FACTOR = 2  # 3 dB
FRAMES_AT_ONCE = 16
TICK_S = 0.05

RequestFactory = Callable[[Sound, int], RemoteRequest]  # a request of so many frames for a piece of the sound


@dataclass(frozen=True)
class Part:
    """A piece of the video, made by one request.

    Attributes:
        start: its first frame in the whole.
        num_frames: how many frames of it are shown.
    """

    start: int
    num_frames: int

    @property
    def requested(self) -> int:
        """Frames to ask for: 4n+1, at least the card's 41."""
        return max(SHORTEST, nearest_num_frames(self.num_frames))


def plan_parts(sound: Sound) -> list[Part]:
    """Cuts the whole sound into parts of at most 241 frames, each at the latest pause, or the quietest moment."""
    total, energy = max(1, round(sound.duration_s * FPS)), _energy(sound)
    parts, start = [], 0
    while total - start > LONGEST:
        last = min(LONGEST, total - start - SHORTEST)
        candidates = range(EARLIEST_CUT, last + 1, VAE_STRIDE_TIME)
        parts.append(Part(start, _best_cut(energy, start, candidates)))
        start += parts[-1].num_frames
    return [*parts, Part(start, total - start)]


def _energy(sound: Sound) -> Tensor:
    """The mean square of `PAUSE_S` around each frame's start, `f`."""
    power = sound.samples.double().square().mean(0)
    sums = torch.nn.functional.pad(power.cumsum(0), (1, 0))
    starts = (torch.arange(round(sound.duration_s * FPS) + 1) / FPS * sound.rate_hz).long()
    half = max(1, round(PAUSE_S / 2 * sound.rate_hz))
    low, high = (starts - half).clamp(0, len(power)), (starts + half).clamp(0, len(power))
    return (sums[high] - sums[low]) / (high - low).clamp(min=1)


def _best_cut(energy: Tensor, start: int, candidates: range) -> int:
    """The latest length that ends in a pause, or where there is none, about as quietly as any."""
    levels = energy[[start + length for length in candidates]]
    quiet = levels <= max(PAUSE_LEVEL * energy.max(), QUIET_FACTOR * levels.min())
    return candidates[int(quiet.nonzero()[-1])]


def piece(sound: Sound, part: Part) -> Sound:
    """What is said in a part, and then silence up to the frames that are asked for."""
    first, last = (round(frame / FPS * sound.rate_hz) for frame in (part.start, part.start + part.num_frames))
    said = sound.samples[:, first:last]
    missing = round(part.requested / FPS * sound.rate_hz) - said.shape[1]
    return Sound(torch.nn.functional.pad(said, (0, max(0, missing))), sound.rate_hz)


def start_split(
    sound: Sound, make: RequestFactory, context: RemoteContext, resume: Resume = Resume.AUTO
) -> Job[RemoteVideo]:
    """The video of a sound of any length, made in a thread of its own."""
    return Job(lambda monitor: run_split(sound, make, context, resume, monitor))


def run_split(
    sound: Sound, make: RequestFactory, context: RemoteContext, resume: Resume, monitor: JobMonitor
) -> RemoteVideo:
    """The same in the present thread. Each part is a job of its own in the ledger.

    Raises:
        AudioError: the sound cannot be used.
        RemoteError: the parts together would pass a cap, before any of them is bought; or a part failed: the
            others are kept, and the next run buys only that one.
    """
    check(sound)
    parts = plan_parts(sound)
    requests = [make(piece(sound, part), part.requested) for part in parts]
    if len(parts) == 1:
        return run(requests[0], context, resume, monitor)
    check_affordable(requests, context, context.caps.of_long_run, resume, Ledger(context.private))
    videos = _run_parts(requests, context, resume, monitor)
    monitor.report(f"joining {len(parts)} parts", 0.99)
    return _join_videos(videos, parts, sound)


def _run_parts(
    requests: list[RemoteRequest], context: RemoteContext, resume: Resume, monitor: JobMonitor
) -> list[RemoteVideo]:
    """Runs `CONCURRENT` requests at a time; after a failure the running ones end, and no other is begun."""
    jobs: list[Job[RemoteVideo]] = []
    waiting = deque(requests)
    try:
        while waiting or any(job.alive for job in jobs):
            monitor.wait(TICK_S)
            if any(not job.alive and job.error for job in jobs):
                waiting.clear()
            while waiting and sum(job.alive for job in jobs) < CONCURRENT:
                jobs.append(_part_job(waiting.popleft(), context, resume, monitor.child()))
            _report(jobs, len(requests), monitor)
    finally:
        for job in jobs:  # told to stop with the whole; their cancels go out first
            job.join()
    return [_result(job, index, len(requests)) for index, job in enumerate(jobs, 1)]


def _part_job(request: RemoteRequest, context: RemoteContext, resume: Resume, monitor: JobMonitor) -> Job[RemoteVideo]:
    return Job(lambda own: run(request, context, resume, own), monitor)


def _result(job: Job[RemoteVideo], index: int, num_parts: int) -> RemoteVideo:
    if isinstance(job.error, RemoteError) and not isinstance(job.error, JobStopped):
        raise type(job.error)(
            f"Part {index} of {num_parts} failed: {job.error} The parts that were finished are kept; the next run buys "
            f"only what is missing."
        ) from None
    return job.result()


def _report(jobs: list[Job[RemoteVideo]], num_parts: int, monitor: JobMonitor) -> None:
    shares = sum(job.monitor.fraction if job.alive else 1.0 for job in jobs) / num_parts
    busy = [f"part {index} of {num_parts}: {job.monitor.text}" for index, job in enumerate(jobs, 1) if job.alive]
    monitor.report(busy[0] if busy else monitor.text, 0.99 * shares)


def _join_videos(videos: list[RemoteVideo], parts: list[Part], sound: Sound) -> RemoteVideo:
    """One file of all parts under the user's own sound."""
    ids = ",".join(video.request_id for video in videos)
    first = videos[0].path
    path = first.with_name(f"{first.stem}_joined_{hashlib.sha256(ids.encode()).hexdigest()[:16]}.mp4")
    if not path.exists():
        _join(path, videos, parts, sound)
    units = [video.units for video in videos]
    has_units = all(count is not None for count in units)
    return RemoteVideo(
        path=path,
        seed=videos[0].seed,
        request_id=ids,
        properties=probe(path),
        estimate=sum((video.estimate for video in videos), PriceEstimate(0, 0)),
        units=sum(units) if has_units else None,
        billed_usd=sum(video.billed_usd for video in videos) if has_units else None,
        waited_s=max(video.waited_s for video in videos),
    )


def _join(path: Path, videos: list[RemoteVideo], parts: list[Part], sound: Sound) -> None:
    with VideoWriter(path, FPS, sound) as writer:
        for video, part in zip(videos, parts, strict=True):
            for frames in _frames(video.path, part.num_frames):
                writer.add(frames)


def _frames(path: Path, num_frames: int) -> Iterator[Tensor]:
    """Exactly `num_frames` frames of a file, uint8 `f h w c` some at a time; a file that is short holds its last."""
    count, last = 0, None
    with av.open(str(path)) as file:
        pictures = (frame.to_ndarray(format="rgb24") for frame in file.decode(file.streams.video[0]))
        shown_pictures = islice(pictures, num_frames)
        while some := list(islice(shown_pictures, FRAMES_AT_ONCE)):
            count, last = count + len(some), some[-1]
            yield torch.from_numpy(np.stack(some))
    if count < num_frames:
        logger.warning("%s has %d frames in place of %d; its last is held.", path.name, count, num_frames)
        yield from (torch.from_numpy(last[None]) for _ in range(num_frames - count))
