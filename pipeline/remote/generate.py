"""Entries of the remote run: a request made by fal from a picture and voices, and a job collected by its id."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from ..audio.waveform import SILENT, Sound, check, peak_of, to_mono
from ..config import GenerationConfig
from ..errors import AudioError, ConfigError, RemoteError
from ..shapes import FPS
from .answers import JobLost
from .client import FalClient
from .collect import Collector, RemoteVideo, video_on_disk
from .context import RemoteContext
from .endpoints import DEFAULT_SEED, ENDPOINTS, MULTI, Endpoint, alternatives
from .job import Job, JobMonitor, exclusive
from .ledger import Ledger, Row, State
from .media import Media, encode_image, encode_sound
from .pricing import PriceEstimate
from .purchase import Resume, run
from .request import IMAGE_FIELD, OPTIONS, RemoteRequest
from .split import Part, part_sound, plan_parts, run_parts

logger = logging.getLogger(__name__)

VOICE_NAMES = ("speech.wav", "speech_2.wav")  # at fal
ELSEWHERE = "id:"  # how the job keys begin of what was bought elsewhere


def start_request(
    picture: Tensor,
    voices: Sequence[Sound],
    prompt: str,
    config: GenerationConfig,
    endpoint: Endpoint,
    context: RemoteContext,
    resume: Resume = Resume.AUTO,
    split: bool = False,
) -> Job[RemoteVideo]:
    """`run_request` in a thread of its own; `job.monitor.stop()` ends it and cancels it at fal."""
    return Job(lambda monitor: run_request(picture, voices, prompt, config, endpoint, context, resume, split, monitor))


def run_request(
    picture: Tensor,
    voices: Sequence[Sound],
    prompt: str,
    config: GenerationConfig,
    endpoint: Endpoint,
    context: RemoteContext,
    resume: Resume,
    split: bool,
    monitor: JobMonitor,
) -> RemoteVideo:
    """A talking video, made by fal or taken from what was bought before.

    Before anything is sent, the monitor's notes say the price here and elsewhere, what the endpoint does not take, and
    where the lengths of sound and video differ.

    Args:
        picture: the portrait, as `to_rgb` takes it.
        voices: one for each speaker, in turn.
        config: its `num_frames` 0 is as long as the speech.
        split: as long as the speech, in several requests where one is too short.

    Raises:
        MultiTalkError: the request cannot be served; nothing was bought.
        RemoteError: the video could not be had. Whatever was bought stays in the ledger, and the next run collects it.
    """
    _check_voices(voices, endpoint, split)
    portrait = encode_image(picture)
    speech_s = sum(voice.duration_s for voice in voices)
    parts, durations_s = [], [config.num_frames / FPS]
    if endpoint.num_frames is None or (config.num_frames == 0 and not split):
        durations_s = [endpoint.duration_s(speech_s)]
    elif split:
        parts = plan_parts(voices[0], endpoint.num_frames)
        durations_s = [part.request_frames / FPS for part in parts]
    if endpoint.num_frames is None or split or config.num_frames == 0:
        context = replace(context, caps=context.caps.of_long_run)
    requests = [
        RemoteRequest(endpoint, prompt, config, _media(endpoint, portrait, sounds, duration_s), duration_s)
        for sounds, duration_s in zip(_sounds(voices, parts), durations_s, strict=True)
    ]
    notes = tuple(_notes(requests, len(voices), speech_s, parts))
    for note in notes:
        logger.warning("%s", note)
    monitor.notes.extend(notes)
    if len(requests) == 1:
        video = run(requests[0], context, resume, monitor)
    else:
        video = run_parts(requests, parts, voices[0], context, resume, monitor)
    return replace(video, notes=notes)


def start_collecting(request_id: str, endpoint: str, context: RemoteContext) -> Job[RemoteVideo]:
    """The video of a job that fal knows by this id, whoever bought it; never buys, and never cancels.

    Args:
        endpoint: id of the model that made it; one that this machine has used is known better.
    """
    return Job(lambda monitor: _collect(request_id.strip(), endpoint, context, monitor))


def _check_voices(voices: Sequence[Sound], endpoint: Endpoint, split: bool) -> None:
    if not voices:
        raise ConfigError("There is no voice. Give a sound for each speaker.")
    if len(voices) > len(endpoint.voices):
        raise ConfigError(f"{endpoint.id} takes one voice, got {len(voices)}. Choose {MULTI.id}, or take audio_2 away.")
    if split and len(voices) != 1:
        raise ConfigError(f"Only one voice can be split at pauses, got {len(voices)}. Set long_audio to cut.")
    for number, voice in enumerate(voices, 1):
        check(voice, f"Voice {number}")
    if max(peak_of(to_mono(voice).samples) for voice in voices) < SILENT:
        raise AudioError("The sound is silent, and fal would be paid for a person who says nothing. Choose another.")


def _sounds(voices: Sequence[Sound], parts: Sequence[Part]) -> list[list[Sound]]:
    """The voices of each request."""
    return [[part_sound(voices[0], part)] for part in parts] or [list(voices)]


def _media(endpoint: Endpoint, portrait: Media, voices: Sequence[Sound], duration_s: float) -> dict[str, Media]:
    """The portrait and the voices under the names of the endpoint's fields."""
    length_s = None if endpoint.num_frames is None else duration_s
    names = zip(endpoint.voices, voices, VOICE_NAMES, strict=False)
    return {IMAGE_FIELD: portrait, **{field: encode_sound(voice, length_s, name) for field, voice, name in names}}


def _notes(requests: list[RemoteRequest], num_voices: int, speech_s: float, parts: Sequence[Part]) -> list[str]:
    """The price and what else should be known before it is paid."""
    endpoint, config = requests[0].endpoint, requests[0].config
    duration_s = speech_s if parts else requests[0].duration_s
    price = sum((request.estimate for request in requests), PriceEstimate(0, 0))
    others = alternatives(endpoint, num_voices, duration_s, config.resolution)
    notes = [
        f"{duration_s:.2f} s at {endpoint.id}: {price}." + (f" The same clip elsewhere: {others}." if others else "")
    ]
    unused = [name for name in OPTIONS if name not in endpoint.options]
    if unused:
        notes.append(f"{endpoint.id} takes {endpoint.inputs}; {', '.join(unused)} are not sent.")
    if not parts and speech_s > duration_s + 1 / FPS:
        notes.append(
            f"The sound ({speech_s:.2f} s) is longer than the video ({duration_s:.2f} s, {requests[0].num_frames} "
            f"frames): its end is cut off. Ask for more frames, or split long audio at pauses."
        )
    if not parts and config.num_frames and speech_s < duration_s - 1 / FPS:
        notes.append(f"The sound ({speech_s:.2f} s) is shorter than the video ({duration_s:.2f} s).")
    return notes


def _collect(request_id: str, endpoint: str, context: RemoteContext, monitor: JobMonitor) -> RemoteVideo:
    _check_id(request_id)
    ledger = Ledger(context.private)
    row = ledger.by_request_id(request_id)
    with exclusive(row.job_key if row else f"{ELSEWHERE}{request_id}", monitor):
        row = ledger.by_request_id(request_id) or _new_row(request_id, endpoint, ledger)
        if row.job_key.startswith(ELSEWHERE) and row.endpoint != endpoint:  # only the user knows which made it
            row = ledger.update(row, endpoint=endpoint)
        estimate = PriceEstimate(row.usd, row.usd)
        if video := video_on_disk(row, ledger, estimate):
            return video
        price = ENDPOINTS[row.endpoint].price if row.endpoint in ENDPOINTS else None
        with FalClient(context.key, row.endpoint, context.backoff) as client:
            try:
                return Collector(client, ledger, context, price, monitor, owns=False).video(row, estimate)
            except JobLost as error:
                advice = "Choose the endpoint that made it, and the key of the account that did."
                raise JobLost(f"{error} {advice}") from None


def _check_id(request_id: str) -> None:
    if not request_id:
        raise RemoteError("There is no request id. Copy one from fal.ai/dashboard, or from the node that bought it.")
    if not request_id.isprintable():
        raise RemoteError(f"{request_id!a} is no request id. Copy one from fal.ai/dashboard.")
    if "," in request_id:
        raise RemoteError(
            f"These are the ids of the {request_id.count(',') + 1} parts of a long video. Collect one at a time, or "
            f"run the node that bought them again: it fetches and joins them."
        )


def _new_row(request_id: str, endpoint: str, ledger: Ledger) -> Row:
    """A row for a job that was bought elsewhere: it counts against no cap of ours until fal names its units."""
    now = time.time()
    row = Row(f"{ELSEWHERE}{request_id}", 1, endpoint, State.SUBMITTED, request_id, {}, DEFAULT_SEED, now, now, usd=0.0)
    ledger.begin(row)
    return row
