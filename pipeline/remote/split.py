"""Audio longer than one request: cut at pauses, run as several requests, joined under the user's own sound."""

from __future__ import annotations

import hashlib
import logging
import os
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..audio.waveform import Sound, fit_length
from ..config import CARD_NUM_FRAMES
from ..errors import MultiTalkError, RemoteError
from ..media.files import decodable, moving_pictures, open_container
from ..media.video import VideoWriter
from ..shapes import FPS, VAE_STRIDE_TIME, nearest_num_frames
from .answers import JobInterrupted
from .collect import RemoteVideo
from .context import RemoteContext
from .download import numbered_paths
from .job import Job, JobMonitor
from .ledger import Ledger
from .media import VideoProperties, probe
from .pricing import PriceEstimate
from .purchase import Resume, check_purchases, run
from .request import RemoteRequest

logger = logging.getLogger(__name__)

CONCURRENT = 2  # jobs that a new account may run at once; what is over would only wait in fal's queue
EARLIEST_CUT = 121  # no pause is worth a shorter part, unless the sound ends
PAUSE_S = 0.2  # that has to be quiet for a cut
PAUSE_LEVEL = 1e-4  # of the loudest energy: -40 dB
QUIET_FACTOR = 2  # 3 dB
FRAMES_AT_ONCE = 16
TICK_S = 0.05


@dataclass(frozen=True)
class Part:
    """A piece of the video, made by one request.

    Attributes:
        start: its first frame in the whole.
        num_frames: of the whole video.
        request_frames: of the request: 4n+1, at least the shortest that the endpoint makes.
    """

    start: int
    num_frames: int
    request_frames: int


def plan_parts(sound: Sound, lengths: range = CARD_NUM_FRAMES) -> list[Part]:
    """Cuts the whole sound into parts, each at the latest pause, or the quietest moment.

    Args:
        lengths: frames that one request may have.
    """
    shortest, longest = lengths[0], lengths[-1]
    total, energy = max(1, round(sound.duration_s * FPS)), _energy(sound)
    starts = [0]
    while total - starts[-1] > longest:
        last = min(longest, total - starts[-1] - shortest)
        candidates = range(EARLIEST_CUT, last + 1, VAE_STRIDE_TIME)
        starts.append(starts[-1] + _best_cut(energy, starts[-1], candidates))
    sizes = [end - start for start, end in zip(starts, [*starts[1:], total], strict=True)]
    requests = [max(shortest, nearest_num_frames(size)) for size in sizes]
    return [Part(*part) for part in zip(starts, sizes, requests, strict=True)]


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


def part_sound(sound: Sound, part: Part) -> Sound:
    """The speech of a part, and then silence up to the end of the request."""
    first, last = (round(frame / FPS * sound.rate_hz) for frame in (part.start, part.start + part.num_frames))
    num_samples = max(last - first, round(part.request_frames / FPS * sound.rate_hz))
    return Sound(fit_length(sound.samples[:, first:last], num_samples), sound.rate_hz)


def run_parts(
    requests: list[RemoteRequest],
    parts: list[Part],
    sound: Sound,
    context: RemoteContext,
    resume: Resume,
    monitor: JobMonitor,
) -> RemoteVideo:
    """The video of several requests. Each part is a job of its own in the ledger.

    Raises:
        RemoteError: the parts together would pass a cap, before any of them is bought; or a part failed: the
            others are kept, and the next run buys only that one.
    """
    ledger = Ledger(context.private)
    check_purchases(requests, context, context.caps, resume, ledger)
    videos = _run(requests, context, resume, monitor)
    monitor.report(f"joining {len(parts)} parts", 0.99)
    return _join(videos, parts, sound, ledger)


def _run(
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
        for job in jobs:  # stopped with the whole; their cancels go out first
            job.join()
    _raise_failure(jobs, len(requests))
    return [job.result() for job in jobs]


def _part_job(request: RemoteRequest, context: RemoteContext, resume: Resume, monitor: JobMonitor) -> Job[RemoteVideo]:
    return Job(lambda own: run(request, context, resume, own), monitor)


def _raise_failure(jobs: list[Job[RemoteVideo]], num_parts: int) -> None:
    ids = ", ".join(job.result().request_id for job in jobs if job.error is None) or "none"
    for index, job in enumerate(jobs, 1):
        if isinstance(job.error, RemoteError) and not isinstance(job.error, JobInterrupted):
            raise type(job.error)(
                f"Part {index} of {num_parts} failed: {job.error} The parts that were finished are kept ({ids}); the "
                f"next run buys only what is missing."
            ) from None


def _report(jobs: list[Job[RemoteVideo]], num_parts: int, monitor: JobMonitor) -> None:
    shares = sum(job.monitor.fraction if job.alive else 1.0 for job in jobs) / num_parts
    busy = [f"part {index} of {num_parts}: {job.monitor.text}" for index, job in enumerate(jobs, 1) if job.alive]
    monitor.report(busy[0] if busy else monitor.text, 0.99 * shares)


def _join(videos: list[RemoteVideo], parts: list[Part], sound: Sound, ledger: Ledger) -> RemoteVideo:
    """One file of all parts under the user's own sound."""
    ids = ",".join(video.request_id for video in videos)
    first = videos[0].path
    stem = first.with_name(f"{first.stem}_joined_{hashlib.sha256(ids.encode()).hexdigest()[:16]}")
    try:
        path, properties = _joined_file(stem, videos, parts, sound, ledger)
    except MultiTalkError as error:
        raise RemoteError(f"{error} The parts are here, and nothing is bought by the next run: {ids}.") from None
    units = [video.units for video in videos if video.units is not None]
    billed = [video.billed_usd for video in videos if video.billed_usd is not None]
    return RemoteVideo(
        path=path,
        seed=videos[0].seed,
        request_id=ids,
        properties=properties,
        estimate=sum((video.estimate for video in videos), PriceEstimate(0, 0)),
        units=sum(units) if len(units) == len(videos) else None,
        billed_usd=sum(billed) if len(billed) == len(videos) else None,
        elapsed_s=max(video.elapsed_s for video in videos),
    )


def _joined_file(
    stem: Path, videos: list[RemoteVideo], parts: list[Part], sound: Sound, ledger: Ledger
) -> tuple[Path, VideoProperties]:
    """The file of an earlier run, if it still is as it was written, or a new one."""
    path = stem
    for path in numbered_paths(stem, "mp4"):
        if not os.path.lexists(path):
            break
        if ledger.is_intact(path):
            return path, probe(path)
    with VideoWriter(path, FPS, sound) as writer:
        for video, part in zip(videos, parts, strict=True):
            for frames in _frames(video.path, part.num_frames):
                writer.add(frames)
    ledger.remember_file(path)
    return path, probe(path)


def _frames(path: Path, num_frames: int) -> Iterator[Tensor]:
    """Exactly `num_frames` frames of a file, uint8 `f h w c` some at a time; a file that is short holds its last."""
    count = 0
    batch: list[np.ndarray] = []
    with open_container(path, "a video", RemoteError, "Run again to fetch it.") as file:
        decoded = (frame.to_ndarray(format="rgb24") for frame in file.decode(decodable(moving_pictures(file))[0]))
        trimmed = islice(decoded, num_frames)
        while pictures := list(islice(trimmed, FRAMES_AT_ONCE)):
            count, batch = count + len(pictures), pictures
            yield torch.from_numpy(np.stack(batch))
    if count < num_frames:
        logger.warning("%s has %d frames in place of %d; its last is held.", path.name, count, num_frames)
        yield from (torch.from_numpy(batch[-1][None]) for _ in range(num_frames - count))
