"""From AUDIO to audio embeds and the soundtrack, and to and from WanVideoWrapper's dictionary."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from comfy_api.latest import io

from ..pipeline.audio.clips import Dialogue
from ..pipeline.audio.dialogue import Arrangement, Speech
from ..pipeline.audio.embeds import AudioEmbeds, encode_audio
from ..pipeline.errors import AudioError, Problems
from ..pipeline.host import Progress
from ..pipeline.preflight.checks import check_voices
from ..pipeline.shapes import FPS
from ..pipeline.weights import handles
from ..pipeline.weights.handles import Lazy
from . import sockets
from .comfy_host import ComfyHost, at_work, show_text
from .conversions import from_audio, from_kijai
from .dialogue import from_dialogue
from .speakers import MAX_SPEAKERS, Speaker, voices_of

if TYPE_CHECKING:  # imports of seconds
    from transformers import Wav2Vec2Model

CATEGORY = "MultiTalk"


class MultiTalkEncodeAudio(io.ComfyNode):
    """Encodes the speakers' voices, each from its start."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MultiTalkEncodeAudio",
            display_name="MultiTalk Encode Audio",
            search_aliases=["talking", "lip sync", "lipsync", "speech", "voice", "dialogue", "song", "wav2vec2"],
            category=CATEGORY,
            description="Encodes one voice or several. The video sounds as the voices came, only cut or padded.",
            inputs=[
                sockets.AudioEncoder.Input("audio_encoder", tooltip="chinese-wav2vec2-base."),
                io.Audio.Input(
                    "audio_1", optional=True, tooltip="The first speaker's voice; it moves the lips and is heard."
                ),
                *(
                    io.Audio.Input(f"audio_{k}", optional=True, tooltip=f"The voice of speaker {k}.")
                    for k in range(2, MAX_SPEAKERS + 1)
                ),
                sockets.Speakers.Input(
                    "speakers", optional=True, tooltip="Speakers with their own voices, instead of those above."
                ),
                sockets.Dialogue.Input(
                    "dialogue",
                    optional=True,
                    tooltip="Clips on a timeline, from MultiTalk Dialogue or Split Recording, instead of voices.",
                ),
                io.Audio.Input(
                    "soundtrack",
                    optional=True,
                    tooltip="What the video sounds like, if other than the voices: the full mix, where the voices "
                    "above were separated from music.",
                ),
                io.Int.Input(
                    "num_frames",
                    default=0,
                    min=0,
                    max=100000,
                    tooltip="Length of the video, 25 frames a second; 0 is as long as the speech.",
                ),
                io.Float.Input(
                    "fps",
                    default=25.0,
                    min=1.0,
                    max=60.0,
                    step=0.01,
                    tooltip="Frames a second of the finished video. The model makes 25; other rates leave some out or "
                    "repeat some.",
                ),
                io.Combo.Input(
                    "multi_audio_type",
                    options=Arrangement,
                    default=Arrangement.PARALLEL,
                    tooltip="Several voices together (para) or one after the other (add).",
                ),
                io.Boolean.Input(
                    "normalize_loudness",
                    default=True,
                    tooltip="Brings every voice to -23 LUFS for the lips, as in training; the sound stays as it is.",
                ),
                io.String.Input(
                    "start_times",
                    default="",
                    advanced=True,
                    tooltip="When each voice starts, in seconds, with commas: 0, 3.5. Empty follows multi_audio_type.",
                ),
            ],
            outputs=[
                sockets.AudioEmbeds.Output(display_name="audio_embeds"),
                io.Int.Output(display_name="frame_count"),
            ],
        )

    @classmethod
    def execute(
        cls,
        audio_encoder: Lazy[Wav2Vec2Model],
        num_frames: int,
        fps: float,
        multi_audio_type: str,
        normalize_loudness: bool,
        start_times: str,
        soundtrack: dict | None = None,
        speakers: tuple[Speaker, ...] | None = None,
        dialogue: Dialogue | None = None,
        **voices: dict,
    ) -> io.NodeOutput:
        host, problems, arrangement = ComfyHost(), Problems(), Arrangement(multi_audio_type)
        dialogue = from_dialogue(dialogue)
        speeches = speeches_of(dialogue, speakers, voices, start_times)
        check_voices(speeches, arrangement, num_frames, fps, problems)
        problems.raise_errors()
        host.report(Progress("audio", 0))
        with at_work(audio_encoder.model, host) as encoder:
            embeds = encode_audio(
                encoder,
                speeches,
                arrangement,
                round(num_frames * fps / FPS),
                normalize_loudness,
                handles.normalizes_input(encoder),
                fps,
                dialogue.soundtrack if soundtrack is None else from_audio(soundtrack, "soundtrack"),
            )
        host.report(Progress("audio", 1))
        show_text("\n".join(problems.notes))
        return io.NodeOutput(embeds, embeds.num_frames)


def speeches_of(
    dialogue: Dialogue, speakers: tuple[Speaker, ...] | None, voices: Mapping[str, dict], start_times: str
) -> list[Speech]:
    """A speech of each speaker: from the dialogue, the speakers' own voices, or those of `audio_1`, `audio_2`, ...

    Raises:
        AudioError: there is no voice, more than one kind of them, a voice is no sound, or a start is out of range.
    """
    if dialogue.clips:
        if voices or start_times.strip():
            name = min(voices, default="start_times")
            raise AudioError(f"There is a dialogue, and {name} too. Disconnect or empty one of them.")
        return dialogue.speeches()
    sounds = voices_of(speakers, voices)
    if not sounds:
        raise AudioError("There is no voice. Connect audio_1, speakers with voices, or a dialogue.")
    return [Speech(sound, start) for sound, start in zip(sounds, start_times_of(start_times, len(sounds)), strict=True)]


class MultiTalkEmbedsToKijai(io.ComfyNode):
    """Our audio embeds for WanVideoWrapper's sampler."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MultiTalkEmbedsToKijai",
            display_name="MultiTalk Embeds to WanVideoWrapper",
            search_aliases=["wanvideo multitalk embeds"],
            category=f"{CATEGORY}/interop",
            description="Turns audio embeds into the multitalk_embeds that WanVideoWrapper's sampler takes.",
            inputs=[
                sockets.AudioEmbeds.Input("audio_embeds", tooltip="From MultiTalk Encode Audio."),
                io.Float.Input(
                    "audio_scale", default=1.0, min=0.0, max=10.0, step=0.05, tooltip="Strength of the audio attention."
                ),
                io.Float.Input(
                    "audio_cfg_scale", default=1.0, min=0.0, max=10.0, step=0.05, tooltip="Guidance towards the audio."
                ),
                io.Mask.Input("ref_target_masks", optional=True, tooltip="A mask for each speaker."),
            ],
            outputs=[sockets.KijaiEmbeds.Output(display_name="multitalk_embeds")],
        )

    @classmethod
    def execute(
        cls,
        audio_embeds: AudioEmbeds,
        audio_scale: float,
        audio_cfg_scale: float,
        ref_target_masks: torch.Tensor | None = None,
    ) -> io.NodeOutput:
        return io.NodeOutput(
            {
                "audio_features": [person[: audio_embeds.num_frames] for person in audio_embeds.features],
                "audio_scale": audio_scale,
                "audio_cfg_scale": audio_cfg_scale,
                "ref_target_masks": ref_target_masks,
            }
        )


class MultiTalkEmbedsFromKijai(io.ComfyNode):
    """WanVideoWrapper's audio embeds for our sampler."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MultiTalkEmbedsFromKijai",
            display_name="MultiTalk Embeds from WanVideoWrapper",
            search_aliases=["wanvideo multitalk embeds"],
            category=f"{CATEGORY}/interop",
            description="Takes the multitalk_embeds of WanVideoWrapper. Its scales are set on our sampler instead.",
            inputs=[sockets.KijaiEmbeds.Input("multitalk_embeds", tooltip="From WanVideoWrapper's MultiTalk nodes.")],
            outputs=[
                sockets.AudioEmbeds.Output(display_name="audio_embeds"),
                io.Int.Output(display_name="frame_count"),
            ],
        )

    @classmethod
    def execute(cls, multitalk_embeds: dict) -> io.NodeOutput:
        embeds = from_kijai(multitalk_embeds)
        return io.NodeOutput(embeds, embeds.num_frames)


def start_times_of(text: str, num_speakers: int) -> list[float | None]:
    """One start for each speaker from `0, 3.5`; all None where the text is empty.

    Raises:
        AudioError: not numbers, or not as many as speakers.
    """
    if not text.strip():
        return [None] * num_speakers
    try:
        starts = [float(part) for part in text.split(",")]
    except ValueError:
        raise AudioError(f"start_times must be seconds with commas between, like 0, 3.5; got {text!r}.") from None
    if len(starts) != num_speakers or min(starts) < 0:
        raise AudioError(f"start_times needs {num_speakers} times of 0 or more, one for each voice; got {text!r}.")
    return [*starts]
