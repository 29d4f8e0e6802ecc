"""The same request, made by fal: the node starts it, shows its progress, and cancels it when it is left."""

from __future__ import annotations

import asyncio

from comfy_api.latest import InputImpl, io
from torch import Tensor

from ..pipeline.audio.waveform import Sound
from ..pipeline.choice import Choice
from ..pipeline.config import Acceleration, GenerationConfig, Resolution
from ..pipeline.errors import AudioError, ConfigError, RemoteError
from ..pipeline.remote.collect import RemoteVideo
from ..pipeline.remote.context import RemoteContext
from ..pipeline.remote.endpoints import AI_AVATAR, COLLECTABLE, DEFAULT_SEED, ENDPOINTS, LENGTHS, find_endpoint
from ..pipeline.remote.generate import start_collecting, start_request
from ..pipeline.remote.job import Job
from ..pipeline.remote.purchase import Resume
from ..pipeline.remote.request import MAX_SEED
from ..pipeline.shapes import VAE_STRIDE_TIME
from . import folders
from .comfy_host import allows_api_nodes, raise_when_interrupted, show_text
from .conversions import describe, from_audio

POLL_S = 0.1
BAR = 1000
DEFAULT_NUM_FRAMES = 145  # the card's


class LongAudio(Choice):
    """The end of a sound that is longer than the video's frames."""

    CUT = "cut"
    SPLIT = "split at pauses"


class MultiTalkFal(io.ComfyNode):
    """A talking video made by fal: for those who have no large GPU, for money."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MultiTalkFal",
            display_name="MultiTalk on fal",
            category="MultiTalk",
            description="Has fal make the video from a portrait, a voice and a prompt, for $0.02 to $0.50 a second. "
            "The key comes from the environment variable FAL_KEY or a private file, never from the workflow.",
            inputs=[
                io.Image.Input(
                    "image", tooltip="One portrait. fal crops it to the shape of its own choice: crop it first."
                ),
                io.Audio.Input("audio", tooltip="What the person says."),
                io.String.Input(
                    "prompt", multiline=True, default="", tooltip="What the person does, and where. Not for flashtalk."
                ),
                io.Int.Input(
                    "num_frames",
                    default=DEFAULT_NUM_FRAMES,
                    min=LENGTHS[0],
                    max=LENGTHS[-1],
                    step=VAE_STRIDE_TIME,
                    tooltip="25 a second: 41 to 241 for ai-avatar and multi, to 721 for infinitalk; flashtalk is as "
                    "long as the sound. ai-avatar and multi cost 1.25 times as much above 81 frames: 81 frames $0.65, "
                    "85 frames $0.85, 145 frames $1.45.",
                ),
                io.Combo.Input(
                    "resolution",
                    options=Resolution,
                    default=GenerationConfig.resolution,
                    tooltip="fal's card names one price for both; others say that 720p counts double. Not for "
                    "flashtalk.",
                ),
                io.Int.Input(
                    "seed",
                    default=DEFAULT_SEED,
                    min=0,
                    max=MAX_SEED,
                    control_after_generate=False,  # a seed that changes by itself buys a video with every click
                    tooltip="Another seed is another video, and is paid for.",
                ),
                io.Combo.Input(
                    "acceleration",
                    options=Acceleration,
                    default=Acceleration.REGULAR,
                    tooltip="How much quality fal may give up for speed; the price is the same. Not for flashtalk.",
                ),
                io.Combo.Input(
                    "resume",
                    options=Resume,
                    default=Resume.AUTO,
                    tooltip="auto takes a video that was bought before with the same inputs and key; any key takes it "
                    "whichever key bought it; always new buys it again.",
                ),
                io.Combo.Input(
                    "long_audio",
                    options=LongAudio,
                    default=LongAudio.CUT,
                    tooltip="cut makes num_frames. split at pauses makes as much as there is sound, from the same "
                    "portrait, in requests as long as the endpoint makes them; up to $5 unless MULTITALK_FAL_MAX_USD "
                    "says otherwise.",
                ),
                io.Combo.Input(
                    "endpoint",
                    options=list(ENDPOINTS),
                    default=AI_AVATAR.id,
                    tooltip="The model at fal, $0.25 a second. multi has two people speak in turn. infinitalk costs "
                    "$0.20 a second and makes up to 28 s at once. flashtalk costs $0.02 a second and takes image, "
                    "audio and seed alone.",
                ),
                io.Audio.Input("audio_2", optional=True, tooltip="The second person's voice, for multi."),
            ],
            outputs=_outputs(),
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    async def execute(
        cls,
        image: Tensor,
        audio: dict,
        prompt: str,
        num_frames: int,
        resolution: str,
        seed: int,
        acceleration: str,
        resume: str,
        long_audio: str,
        endpoint: str,
        audio_2: dict | None = None,
    ) -> io.NodeOutput:
        voices = [_voice(audio, "audio"), *([] if audio_2 is None else [_voice(audio_2, "audio_2")])]
        config = GenerationConfig(
            num_frames, Resolution(resolution), seed=seed, acceleration=Acceleration(acceleration)
        )
        row, split = find_endpoint(endpoint), LongAudio(long_audio) is LongAudio.SPLIT
        text = _text(prompt, "prompt")
        job = start_request(image, voices, text, config, row, _context(), Resume(resume), split)
        return _output(await _follow(job, cls.hidden.unique_id))


class MultiTalkFalCollect(io.ComfyNode):
    """A video that fal has made, or is making, fetched by its request id; it never buys."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MultiTalkFalCollect",
            display_name="MultiTalk Collect from fal",
            category="MultiTalk",
            description="Fetches a video by its request id, whoever bought it with this account; it never buys.",
            inputs=[
                io.String.Input("request_id", default="", tooltip="From MultiTalk on fal, or from fal.ai/dashboard."),
                io.Combo.Input(
                    "endpoint", options=list(COLLECTABLE), default=AI_AVATAR.id, tooltip="The model that made it."
                ),
            ],
            outputs=_outputs(),
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    async def execute(cls, request_id: str, endpoint: str) -> io.NodeOutput:
        if endpoint not in COLLECTABLE:
            raise ConfigError(f"{endpoint!r} is no endpoint of fal's that is known here. Choose it from the list.")
        job = start_collecting(_text(request_id, "request_id"), endpoint, _context())
        return _output(await _follow(job, cls.hidden.unique_id))


def _outputs() -> list:
    return [
        io.Video.Output(display_name="video"),
        io.Int.Output(display_name="seed"),
        io.String.Output(display_name="request_id"),
        io.String.Output(display_name="info"),
    ]


def _output(video: RemoteVideo) -> io.NodeOutput:
    return io.NodeOutput(InputImpl.VideoFromFile(str(video.path)), video.seed, video.request_id, video.info)


def _text(value: object, name: str) -> str:
    if not isinstance(value, str):
        raise ConfigError(f"{name} must be a text, got {describe(value)}. Connect a STRING.")
    return value


def _voice(audio: dict | None, name: str) -> Sound:
    sound = from_audio(audio, name)
    waveform = audio["waveform"] if audio else sound.samples
    if waveform.ndim == 3 and len(waveform) > 1:
        raise AudioError(f"{name} must be one recording, got a batch of {len(waveform)}. Pick one of them.")
    return sound


async def _follow(job: Job[RemoteVideo], node_id: str) -> RemoteVideo:
    """Shows the progress of a job until it ends. However this is left, the job's own thread sees to the cancel."""
    progress = None
    try:
        while job.alive:
            raise_when_interrupted()
            current = "\n".join([job.monitor.text, *job.monitor.notes]), job.monitor.fraction
            if current != progress:
                progress = current
                await _show(*current, node_id)
            await asyncio.sleep(POLL_S)
        return job.result()
    finally:
        job.monitor.stop()


async def _show(text: str, fraction: float, node_id: str) -> None:
    from comfy_api.latest import ComfyAPI  # ComfyUI's own, which is there when a node runs

    show_text(text)
    await ComfyAPI().execution.set_progress(round(BAR * fraction), BAR, node_id=node_id)


def _context() -> RemoteContext:
    """The key, the caps and the folders of this ComfyUI.

    Raises:
        MultiTalkError: remote runs are switched off, or something for them is missing.
    """
    if not allows_api_nodes():
        raise RemoteError(
            "ComfyUI was started with --disable-api-nodes, so nothing is bought from fal. Start it without."
        )
    return RemoteContext.open(folders.private_directory(), folders.output_directory())
