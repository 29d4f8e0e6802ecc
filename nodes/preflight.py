"""What a run will take and what is wrong with it, told before any weights are read."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

from comfy_api.latest import io, ui
from torch import Tensor

from ..pipeline.audio.dialogue import Arrangement, Speech
from ..pipeline.audio.embeds import AudioEmbeds
from ..pipeline.conditioning.reference_image import bucket, check_size, to_rgb
from ..pipeline.conditioning.speakers import Place
from ..pipeline.config import GenerationConfig, Resolution
from ..pipeline.errors import Problems
from ..pipeline.preflight.checks import Draft, check_places, check_voices, describe, inspect
from ..pipeline.weights.handles import Lazy, TransformerFiles
from . import sockets
from .audio import MAX_SPEAKERS, MultiTalkEncodeAudio, start_times_of
from .comfy_host import PreflightHost, show_text
from .conditioning import CUSTOM, MultiTalkCondition, places_of
from .conversions import from_audio, from_image
from .options import SamplerOptions
from .sampler import MultiTalkSampler
from .settings import Settings, hearing, seeing

if TYPE_CHECKING:
    from ..pipeline.conditioning.conditioning import Conditioning

# The widgets of other nodes that a run's length, size and work follow from.
SAMPLER = ("num_frames", "steps", "text_cfg_scale", "audio_cfg_scale", "shift", "acceleration", "keep_frames")
AUDIO = ("fps", "multi_audio_type", "start_times")
CONDITION = ("resolution", "width", "height", "num_speakers")

_refusals: Counter[str] = Counter()  # by the node's id


class MultiTalkPreflight(io.ComfyNode):
    """All problems of a run at once, and its windows, forwards, time, memory and disk."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MultiTalkPreflight",
            display_name="MultiTalk Preflight",
            category="MultiTalk",
            description="Looks at a whole run in a second or two and reads no weights. Connect the picture, the voices "
            "and the loaders to hear of everything before it is encoded.",
            inputs=[
                sockets.Model.Input("model", tooltip="From MultiTalk Load Model, with LoRAs or without."),
                io.Image.Input("image", optional=True, tooltip="The portrait, as for MultiTalk Condition."),
                *(
                    io.Audio.Input(f"audio_{k}", optional=True, tooltip=f"The voice of speaker {k}.")
                    for k in range(1, MAX_SPEAKERS + 1)
                ),
                sockets.Speakers.Input("speakers", optional=True, tooltip="Who is where, for two voices or more."),
                io.Mask.Input(
                    "ref_target_masks",
                    optional=True,
                    tooltip="A batch with a mask for each speaker, instead of speakers.",
                ),
                sockets.Vae.Input("vae", optional=True, tooltip="From MultiTalk Load VAE."),
                sockets.ImageEncoder.Input(
                    "image_encoder", optional=True, tooltip="From MultiTalk Load Image Encoder."
                ),
                sockets.TextEncoder.Input("text_encoder", optional=True, tooltip="From MultiTalk Load Text Encoder."),
                sockets.AudioEncoder.Input(
                    "audio_encoder", optional=True, tooltip="From MultiTalk Load Audio Encoder."
                ),
                sockets.Options.Input("options", optional=True, tooltip="Single knobs, from our options nodes."),
                sockets.AudioEmbeds.Input(
                    "audio_embeds", optional=True, tooltip="Encoded audio, instead of the voices above."
                ),
                sockets.Conditioning.Input(
                    "conditioning", optional=True, tooltip="The encoded picture, instead of the image above."
                ),
                *_widgets(MultiTalkSampler, SAMPLER),
                *_widgets(MultiTalkEncodeAudio, AUDIO),
                *_widgets(MultiTalkCondition, CONDITION),
            ],
            outputs=[io.String.Output(display_name="report"), io.Boolean.Output(display_name="can_run")],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def fingerprint_inputs(cls, **widgets: object) -> int:
        """After a refusal another look is taken though nothing was changed: memory or disk may be free by now."""
        return _refusals[cls.hidden.unique_id]

    @classmethod
    def execute(
        cls,
        model: TransformerFiles,
        num_frames: int,
        steps: int,
        text_cfg_scale: float,
        audio_cfg_scale: float,
        shift: float,
        acceleration: str,
        keep_frames: bool,
        fps: float,
        multi_audio_type: str,
        start_times: str,
        resolution: str,
        width: int,
        height: int,
        num_speakers: int,
        image: Tensor | None = None,
        speakers: tuple[Place, ...] | None = None,
        ref_target_masks: Tensor | None = None,
        vae: Lazy | None = None,
        image_encoder: Lazy | None = None,
        text_encoder: Lazy | None = None,
        audio_encoder: Lazy | None = None,
        options: SamplerOptions | None = None,
        audio_embeds: AudioEmbeds | None = None,
        conditioning: Conditioning | None = None,
        **voices: dict,
    ) -> io.NodeOutput:
        problems = Problems()
        settings = Settings(
            num_frames,
            steps,
            text_cfg_scale,
            audio_cfg_scale,
            shift,
            acceleration,
            keep_frames,
            options or SamplerOptions(),
        )
        places = places_of(speakers, ref_target_masks, num_speakers)
        target = None
        if conditioning is not None:
            target = conditioning.height, conditioning.width
        elif image is not None:
            size = (height, width) if resolution == CUSTOM else Resolution(resolution)
            target = problems.attempt("image", _look, image, size, places, problems)
        config = problems.attempt("sampler", settings.config, model.recipe, Resolution.of(*(target or (0, 0))))
        draft = settings.draft(model, config or GenerationConfig())
        encoders = {"vae": vae, "image_encoder": image_encoder, "text_encoder": text_encoder}
        paths = {name: lazy.path for name, lazy in encoders.items() if lazy is not None}
        if audio_encoder is not None:  # its loader has refused what was fine-tuned, or was told to allow it
            paths |= {"audio_encoder": audio_encoder.path, "allow_other": True}
        draft = replace(draft, files=replace(draft.files, **paths), target=target, num_places=len(places))
        draft = draft if conditioning is None else seeing(draft, conditioning)
        if audio_embeds is not None:
            draft = hearing(draft, audio_embeds)
        elif voices:
            draft = _listen(draft, voices, start_times, Arrangement(multi_audio_type), fps, problems)
        if (audio_embeds is None and not voices) or (conditioning is None and image is None):
            problems.note("Connect image and audio_1, or conditioning and audio_embeds, to see what the run takes.")
        host = PreflightHost()
        found = inspect(draft, problems, host)
        if problems.errors:
            _refusals[cls.hidden.unique_id] += 1
        report = describe(problems, found)
        show_text(report, cls.hidden.unique_id)
        return io.NodeOutput(report, not problems.errors, ui=ui.PreviewText(report))


def _widgets(node: type[io.ComfyNode], names: tuple[str, ...]) -> list:
    """Widgets of another node, by their ids."""
    return [widget for widget in node.define_schema().inputs if widget.id in names]


def _look(
    image: Tensor, size: tuple[int, int] | Resolution, places: tuple[Place, ...], problems: Problems
) -> tuple[int, int]:
    """Height and width of the video; what is wrong with the places goes to `problems`."""
    rows, columns = to_rgb(from_image(image)).shape[:2]
    target = bucket(rows, columns, size) if isinstance(size, Resolution) else check_size(*size)
    check_places(places, (rows, columns), target, problems)
    return target


def _listen(
    draft: Draft, voices: dict[str, dict], start_times: str, arrangement: Arrangement, fps: float, problems: Problems
) -> Draft:
    """`draft` with the number and the length of the voices; what is wrong with them goes to `problems`."""
    starts = problems.attempt("audio", start_times_of, start_times, len(voices)) or [None] * len(voices)
    sounds = [problems.attempt("audio", from_audio, voice, name) for name, voice in sorted(voices.items())]
    speeches = [problems.attempt("audio", Speech, sound, start) for sound, start in zip(sounds, starts, strict=True)]
    asked = draft.config.num_frames
    num_frames = None if None in (*sounds, *speeches) else check_voices(speeches, arrangement, asked, fps, problems)
    return replace(draft, num_voices=len(voices), num_frames=asked or num_frames)
