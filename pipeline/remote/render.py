"""The command line's and Python's way to fal: the same request as here, its video in the same place."""

from __future__ import annotations

import logging
import shutil
from dataclasses import fields
from pathlib import Path

from ..audio.waveform import Sound
from ..config import GenerationConfig
from ..errors import MultiTalkError, Problems
from ..generation.run_spec import FIRST_LOOK_FRAMES
from ..host import Host, Progress
from ..media.files import atomic_write
from ..media.video import check_video_path
from ..request import Request, RequestMedia, read_media
from .collect import RemoteVideo
from .context import RemoteContext
from .endpoints import find_endpoint
from .generate import start_request
from .job import Job
from .purchase import Resume

logger = logging.getLogger(__name__)

VIDEO_ENDING = ".mp4"  # of fal's files
SENT = ("num_frames", "resolution", "seed", "acceleration")  # of the choices; each endpoint has its share of them
TICK_S = 0.1


def render_request(
    request: Request,
    output: Path,
    endpoint: str,
    host: Host,
    problems: Problems,
    private: Path,
    resume: Resume,
) -> Path:
    """Writes a request's video, made by fal, to `output`; the same inputs are bought once.

    A single voice that is longer than one request of the endpoint becomes several, unless `num_frames` is given.

    Args:
        endpoint: a row of the table of endpoints.
        problems: what is known to be wrong already.
        private: the folder of the ledger, of the key's file and of what was bought; a ComfyUI's is user/__multitalk.
        resume: the use of a video that was bought before.

    Raises:
        ConfigError: all that is wrong with the request, at once; nothing was sent.
        MultiTalkError: it cannot be served there, or the video could not be had.
    """
    private = private.expanduser()
    row = problems.attempt("remote", find_endpoint, endpoint)
    context = problems.attempt("remote", RemoteContext.open, private, private / "videos")
    media = read_media(request, problems)
    voices = _voices(media, problems)
    if media.frames is not None and len(media.frames) > 1:
        problems.add("image", f"fal animates a picture, got a video of {len(media.frames)} frames. Take a picture.")
    if output.suffix.lower() != VIDEO_ENDING:
        problems.add("output", f"fal makes {VIDEO_ENDING} files, got {output.name}. Name it so.")
    if request.config.first_look:
        problems.add("first_look", f"fal makes whole videos. Ask for {FIRST_LOOK_FRAMES} frames.")
    problems.attempt("output", check_video_path, output)
    problems.raise_errors()
    for note in (*problems.notes, *_unsent(request)):
        logger.warning("%s", note)
    assert row is not None and context is not None and media.frames is not None, "else there were errors"
    split = len(voices) == 1 and not request.config.num_frames
    job = start_request(media.frames, voices, request.prompt, request.config, row, context, resume, split)
    video = follow(job, host)
    logger.warning("%s", video.info.splitlines()[0])
    output = output.with_suffix(video.path.suffix)  # fal may choose webm
    try:
        with atomic_write(output) as path:
            shutil.copyfile(video.path, path)
    except OSError as error:
        raise MultiTalkError(
            f"{output} cannot be written ({error.strerror or error}). The video is bought and lies in {video.path}."
        ) from error
    return output


def follow(job: Job[RemoteVideo], host: Host) -> RemoteVideo:
    """The video of a job, whose progress `host` is told; the job stops, and cancels at fal, however this is left."""
    try:
        while job.alive:
            host.check_cancelled()
            host.report(Progress(job.monitor.text, job.monitor.fraction))
            job.join(TICK_S)
        video = job.result()
        host.report(Progress(job.monitor.text, 1.0))
        return video
    finally:
        job.monitor.stop()


def _voices(media: RequestMedia, problems: Problems) -> list[Sound]:
    """The speakers' sounds, in turn."""
    sounds = [speech.sound for speech in media.speeches if speech.sound is not None]
    if len(sounds) < len(media.speeches):
        problems.add("audio", "fal takes a sound for each speaker. Leave out the one who keeps quiet.")
    return sounds


def _unsent(request: Request) -> list[str]:
    """A line that names the choices that only a local run takes."""
    default = GenerationConfig()
    names = [field.name for field in fields(GenerationConfig) if field.name not in SENT]
    names = [name for name in names if getattr(request.config, name) != getattr(default, name)]
    names += ["start"] if any(voice.start_s is not None for voice in request.voices) else []
    names += ["box"] if any(voice.box is not None for voice in request.voices) else []
    names += [name for name in ("soundtrack", "negative_prompt") if getattr(request, name)]
    return [f"fal takes none of {', '.join(names)}; they are not sent."] if names else []
