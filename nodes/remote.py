"""The same request, run by fal: the node starts it, tells of it, and cancels it when it is left."""

from __future__ import annotations

import asyncio

from comfy_api.latest import InputImpl, io
from torch import Tensor

from ..pipeline.audio.waveform import Sound
from ..pipeline.choice import Choice
from ..pipeline.config import CARD_NUM_FRAMES, Acceleration, GenerationConfig, Resolution
from ..pipeline.errors import AudioError, ConfigError, MultiTalkError, RemoteError
from ..pipeline.remote.collect import RemoteVideo
from ..pipeline.remote.context import RemoteContext
from ..pipeline.remote.generate import Resume, start, start_collecting
from ..pipeline.remote.job import Job
from ..pipeline.remote.media import Media, encode_image, encode_sound
from ..pipeline.remote.payload import AI_AVATAR, ENDPOINTS, MAX_SEED, MULTI, Endpoint, RemoteRequest, endpoint_named
from ..pipeline.remote.split import start_split
from ..pipeline.shapes import VAE_STRIDE_TIME
from . import folders
from .comfy_host import allows_api_nodes, raise_when_interrupted, show_text
from .conversions import from_audio

LOOK_S = 0.1
BAR = 1000
# Those that make a portrait speak with given voices; the rows of the table that take a text or a video do not fit here.
PORTRAIT_ENDPOINTS = [row.id for row in ENDPOINTS.values() if "image_url" in row.files and not row.texts]


class LongAudio(Choice):
    """What becomes of sound beyond the video's frames."""

    CUT = "cut"
    SPLIT = "split at pauses"


class MultiTalkFal(io.ComfyNode):
    """Has fal make the video: for those who have no large GPU, for money."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MultiTalkFal",
            display_name="MultiTalk on fal",
            category="MultiTalk",
            description="Sends a portrait, a voice and a prompt to fal, that makes a video for about $0.25 a second. "
            "The key comes from the environment variable FAL_KEY or a private file, never from the workflow.",
            inputs=[
                io.Image.Input(
                    "image", tooltip="One portrait. fal crops it to the shape of its own choice: crop it first."
                ),
                io.Audio.Input("audio", tooltip="What the person says."),
                io.String.Input("prompt", multiline=True, default="", tooltip="What the person does, and where."),
                io.Int.Input(
                    "num_frames",
                    default=AI_AVATAR.default_num_frames,
                    min=CARD_NUM_FRAMES[0],
                    max=CARD_NUM_FRAMES[-1],
                    step=VAE_STRIDE_TIME,
                    tooltip="25 a second. Above 81 every second costs 1.25 times as much: 81 frames $0.65, "
                    "85 frames $0.85, 145 frames $1.45, 241 frames $2.41.",
                ),
                io.Combo.Input(
                    "resolution",
                    options=Resolution,
                    default=GenerationConfig.resolution,
                    tooltip="fal's card names one price for both; others say that 720p counts double.",
                ),
                io.Int.Input(
                    "seed",
                    default=AI_AVATAR.default_seed,
                    min=0,
                    max=MAX_SEED,
                    control_after_generate=False,  # a seed that changes by itself buys a video with every click
                    tooltip="Another seed is another video, and is paid for.",
                ),
                io.Combo.Input(
                    "acceleration",
                    options=Acceleration,
                    default=Acceleration.REGULAR,
                    tooltip="How much quality fal may give up for speed; the price is the same.",
                ),
                io.Combo.Input(
                    "resume",
                    options=Resume,
                    default=Resume.AUTO,
                    tooltip="auto takes a video that was bought before with the same inputs; always new buys it again.",
                ),
                io.Combo.Input(
                    "long_audio",
                    options=LongAudio,
                    default=LongAudio.CUT,
                    tooltip="cut makes num_frames. split at pauses makes as much as there is sound, in requests of "
                    "up to 241 frames from the same portrait; up to $5 unless MULTITALK_FAL_MAX_USD says otherwise.",
                ),
                io.Combo.Input(
                    "endpoint",
                    options=PORTRAIT_ENDPOINTS,
                    default=AI_AVATAR.id,
                    tooltip="The model at fal. multi has two people speak in turn; infinitalk has no higher price "
                    "above 81 frames.",
                ),
                io.Audio.Input("audio_2", optional=True, tooltip="The second person's voice, for multi."),
            ],
            outputs=_outputs(),
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, prompt: str | None = None) -> bool | str:
        """Whatever can be said before anything upstream is computed."""
        if prompt is not None and not prompt.strip():
            return "The prompt is empty. Say what the person does: a woman speaks to the camera."
        try:
            _context()
        except MultiTalkError as error:
            return str(error)
        return True

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
        context, row, portrait = _context(), endpoint_named(endpoint), encode_image(image)
        voices = [_voice(audio, "audio")] if audio_2 is None else [_voice(audio, "audio"), _voice(audio_2, "audio_2")]

        def request(sounds: list[Sound], num_frames: int) -> RemoteRequest:
            config = GenerationConfig(
                num_frames, Resolution(resolution), acceleration=Acceleration(acceleration), seed=seed
            )
            return RemoteRequest(row, prompt, config, _media(row, portrait, sounds, num_frames))

        if LongAudio(long_audio) is LongAudio.SPLIT:
            if len(voices) != 1:
                raise ConfigError(f"Only one voice can be split at pauses, got {len(voices)}. Set long_audio to cut.")
            job = start_split(voices[0], lambda sound, frames: request([sound], frames), context, Resume(resume))
        else:
            job = start(request(voices, num_frames), context, Resume(resume))
        return _output(await _watch(job, cls.hidden.unique_id))


class MultiTalkFalCollect(io.ComfyNode):
    """Fetches a video that fal has made, or is making, by its request id; it never buys."""

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
                    "endpoint", options=list(ENDPOINTS), default=AI_AVATAR.id, tooltip="The model that made it."
                ),
            ],
            outputs=_outputs(),
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    async def execute(cls, request_id: str, endpoint: str) -> io.NodeOutput:
        job = start_collecting(request_id, ENDPOINTS[endpoint], _context())
        return _output(await _watch(job, cls.hidden.unique_id))


def _outputs() -> list:
    return [
        io.Video.Output(display_name="video"),
        io.Int.Output(display_name="seed"),
        io.String.Output(display_name="request_id"),
        io.String.Output(display_name="info"),
    ]


def _output(video: RemoteVideo) -> io.NodeOutput:
    return io.NodeOutput(InputImpl.VideoFromFile(str(video.path)), video.seed, video.request_id, video.info)


def _voice(audio: dict | None, name: str) -> Sound:
    sound = from_audio(audio, name)
    if audio is not None and audio["waveform"].shape[0] > 1:
        raise AudioError(
            f"{name} must be one recording, got a batch of {audio['waveform'].shape[0]}. Pick one of them."
        )
    return sound


def _media(endpoint: Endpoint, portrait: Media, sounds: list[Sound], num_frames: int) -> dict[str, Media]:
    """The portrait and the voices under the names of the endpoint's fields."""
    image_field, *voice_fields = endpoint.files
    if not voice_fields:
        raise ConfigError(f"{endpoint.id} takes no voice; it speaks a text. Choose {AI_AVATAR.id}.")
    if len(sounds) > len(voice_fields):
        raise ConfigError(f"{endpoint.id} takes one voice, got {len(sounds)}. Choose {MULTI.id}, or take audio_2 away.")
    media, names = {image_field: portrait}, ("speech.wav", "speech_2.wav")
    for field, sound, name in zip(voice_fields, sounds, names, strict=False):
        media[field] = encode_sound(sound.samples[None], sound.rate_hz, num_frames, name)
    return media


async def _watch(job: Job[RemoteVideo], node_id: str) -> RemoteVideo:
    """Passes on how the job goes until it ends. However this is left, the job's own thread sees to the cancel."""
    shown = None
    try:
        while job.alive:
            raise_when_interrupted()
            if (job.monitor.text, job.monitor.fraction) != shown:
                shown = job.monitor.text, job.monitor.fraction
                await _show(*shown, node_id)
            await asyncio.sleep(LOOK_S)
        return job.result()
    finally:
        job.monitor.stop()


async def _show(text: str, fraction: float, node_id: str) -> None:
    from comfy_api.latest import ComfyAPI

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
