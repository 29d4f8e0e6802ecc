"""The estimate and the problems of a run, before any weights are read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from comfy_api.latest import io, ui
from torch import Tensor

from ..pipeline.audio.clips import Dialogue
from ..pipeline.audio.dialogue import Arrangement
from ..pipeline.audio.embeds import AudioEmbeds
from ..pipeline.conditioning.speakers import Place, count_speakers
from ..pipeline.config import GenerationConfig
from ..pipeline.errors import Problems
from ..pipeline.generation.run_spec import make_run_spec
from ..pipeline.media.picture import to_rgb
from ..pipeline.model_files import ModelFiles
from ..pipeline.preflight.checks import RunInputs, check_masks, check_run, check_voices, describe
from ..pipeline.weights.handles import Lazy, TransformerFiles
from . import sockets
from .audio import speeches_of, start_times_of
from .comfy_host import PreflightHost, executing_node_id, running_graph, show_text
from .conditioning import target_size
from .conversions import from_image
from .dialogue import from_dialogue
from .graph import run_widgets
from .options import SamplerOptions
from .sampler import run_setup, sampling_config
from .speakers import MAX_SPEAKERS, Speaker, from_speakers, places_of

if TYPE_CHECKING:
    from ..pipeline.conditioning.conditioning import Conditioning

_refusals: Counter[str] = Counter()  # by the node's id


class MultiTalkPreflight(io.ComfyNode):
    """All problems of a run at once, and its windows, forwards, time, memory and disk."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MultiTalkPreflight",
            display_name="MultiTalk Preflight",
            search_aliases=["estimate", "check", "how long", "memory"],
            category="MultiTalk",
            description="Looks at a whole run in a second or two and reads no weights. Length, size and steps are "
            "those of the nodes in the graph. Connect the picture, the voices and the loaders to hear of everything "
            "before it is encoded.",
            inputs=[
                sockets.Model.Input("model", tooltip="From MultiTalk Load Model, with LoRAs or without."),
                io.Image.Input("image", optional=True, tooltip="The portrait, as for MultiTalk Condition."),
                *(
                    io.Audio.Input(f"audio_{k}", optional=True, tooltip=f"The voice of speaker {k}.")
                    for k in range(1, MAX_SPEAKERS + 1)
                ),
                sockets.Dialogue.Input(
                    "dialogue", optional=True, tooltip="Clips on a timeline, as for MultiTalk Encode Audio."
                ),
                sockets.Speakers.Input("speakers", optional=True, tooltip="Who is where, as for MultiTalk Condition."),
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
            ],
            outputs=[io.String.Output(display_name="report"), io.Boolean.Output(display_name="can_run")],
            hidden=[io.Hidden.prompt],
            is_output_node=True,
        )

    @classmethod
    def fingerprint_inputs(cls, **widgets: object) -> str:
        """The graph's widgets, and the number of refusals: after one it checks again, as memory may be free by now."""
        node_id = executing_node_id()
        return repr((run_widgets(running_graph(), node_id), _refusals[node_id]))

    @classmethod
    def execute(
        cls,
        model: TransformerFiles,
        image: Tensor | None = None,
        dialogue: Dialogue | None = None,
        speakers: tuple[Speaker, ...] | None = None,
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
        problems, options = Problems(), options or SamplerOptions()
        sampler, audio, condition = run_widgets(cls.hidden.prompt or {}, executing_node_id())
        setup = run_setup(model, options, keep_frames=sampler.pop("keep_frames"))
        loaders = {"vae": vae, "image_encoder": image_encoder, "text_encoder": text_encoder}
        setup = replace(setup, files=_with_encoders(setup.files, loaders, audio_encoder))
        places = places_of(speakers, ref_target_masks)
        if audio_embeds is None:
            length, num_voices = _speech(from_dialogue(dialogue), speakers, voices, audio, problems)
        else:
            length = audio_embeds.num_output_frames or audio_embeds.num_frames
            num_voices = audio_embeds.num_speakers
        if conditioning is not None:
            size, inputs = (conditioning.height, conditioning.width), RunInputs.encoded(audio_embeds, conditioning)
            num_places = 0 if conditioning.speaker_masks is None else conditioning.num_places
        else:
            size = None if image is None else problems.attempt("image", _size, image, condition, places, problems)
            inputs, num_places = RunInputs(audio_embeds=audio_embeds), len(places)
        num_speakers, num_places = count_speakers(num_voices, num_places)
        inputs = replace(inputs, num_places=num_places)
        if length is None or size is None:
            problems.note("Connect image and audio_1, or conditioning and audio_embeds, to see what the run takes.")
        if audio_embeds is not None:
            audio |= {"num_frames": 0, "fps": float(audio_embeds.fps)}
        widgets = {"num_frames": audio["num_frames"], "fps": audio["fps"], **sampler}
        config = problems.attempt("sampler", lambda: sampling_config(options, **widgets)) or GenerationConfig()
        spec = make_run_spec(config, model.recipe, size, length, num_speakers, acceleration=options.acceleration)
        estimate = check_run(spec, inputs, setup, problems, PreflightHost())
        if problems.errors:
            _refusals[executing_node_id()] += 1
        report = describe(problems, estimate)
        show_text(report)
        return io.NodeOutput(report, not problems.errors, ui=ui.PreviewText(report))


def _with_encoders(files: ModelFiles, loaders: Mapping[str, Lazy | None], audio_encoder: Lazy | None) -> ModelFiles:
    """`files` with those of the encoders that are connected."""
    paths = {name: loader.path for name, loader in loaders.items() if loader is not None}
    files = replace(files, **paths)
    if audio_encoder is None:
        return files
    # Its loader has refused what was fine-tuned, or was told to allow it.
    return replace(files, audio_encoder=audio_encoder.path, allow_other_audio_encoder=True)


def _speech(
    dialogue: Dialogue,
    speakers: tuple[Speaker, ...] | None,
    voices: Mapping[str, dict],
    audio: Mapping[str, Any],
    problems: Problems,
) -> tuple[int | None, int]:
    """Frames of the video at its rate, None while nobody is heard, and the number of voices."""
    num_voices = dialogue.num_speakers or len(voices) or sum(s.voice is not None for s in from_speakers(speakers))
    if not num_voices:
        return None, 1
    start_times = audio["start_times"]
    has_starts = dialogue.clips or problems.attempt("audio", start_times_of, start_times, num_voices) is not None
    speeches = problems.attempt("audio", speeches_of, dialogue, speakers, voices, start_times if has_starts else "")
    if speeches is None:
        return None, num_voices
    arrangement = Arrangement(audio["multi_audio_type"])
    return check_voices(speeches, arrangement, audio["num_frames"], audio["fps"], problems), num_voices


def _size(
    image: Tensor, condition: Mapping[str, Any], places: tuple[Place, ...], problems: Problems
) -> tuple[int, int]:
    """Height and width of the video; what is wrong with the places goes to `problems`."""
    rows, columns = to_rgb(from_image(image)).shape[:2]
    size = target_size(condition["resolution"], condition["width"], condition["height"], rows, columns)
    check_masks(places, (rows, columns), size, problems)
    return size
