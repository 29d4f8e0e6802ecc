"""A dialogue on one timeline: clip by clip, or cut from one recording."""

from __future__ import annotations

from comfy_api.latest import io, ui

from ..pipeline.audio.clips import Clip, Dialogue, split_by_transcript, split_channels
from ..pipeline.audio.timeline import draw_timeline
from ..pipeline.audio.transcript import read_transcript
from ..pipeline.choice import Choice
from ..pipeline.conditioning.speakers import COLORS
from ..pipeline.errors import AudioError
from ..pipeline.media.pixels import from_uint8
from . import sockets
from .conversions import describe, from_audio
from .speakers import MAX_SPEAKERS

CATEGORY = "MultiTalk"
AFTER = -1.0  # of the start: after the clip before


class Split(Choice):
    """The mark by which a recording is given to its speakers."""

    CHANNELS = "a speaker on each channel"
    TRANSCRIPT = "transcript"


class MultiTalkDialogue(io.ComfyNode):
    """Adds a clip to a dialogue."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MultiTalkDialogue",
            display_name="MultiTalk Dialogue",
            search_aliases=["conversation", "timeline", "speech", "talking", "clips", "podcast"],
            category=CATEGORY,
            description="Something that a speaker says, after what was said before. Chain one for each clip; the "
            "picture shows all of them over time.",
            inputs=[
                io.Audio.Input("audio", tooltip="What is said."),
                sockets.Dialogue.Input("dialogue", optional=True, tooltip="What was said before."),
                io.Int.Input(
                    "speaker",
                    default=1,
                    min=1,
                    max=MAX_SPEAKERS,
                    tooltip="Who says it: the number in the picture of MultiTalk Condition.",
                ),
                io.Float.Input(
                    "start",
                    default=AFTER,
                    min=AFTER,
                    max=14400.0,
                    step=0.05,
                    tooltip="Seconds from the start of the video; -1 is after the clip before.",
                ),
                io.Float.Input(
                    "pause",
                    default=0.3,
                    min=-60.0,
                    max=600.0,
                    step=0.05,
                    tooltip="Seconds between the clip before and this one, where start is -1; below 0 they overlap.",
                ),
            ],
            outputs=[sockets.Dialogue.Output(display_name="dialogue")],
        )

    @classmethod
    def execute(
        cls, audio: dict, speaker: int, start: float, pause: float, dialogue: Dialogue | None = None
    ) -> io.NodeOutput:
        clip = Clip(from_audio(audio, "audio"), speaker, None if start < 0 else start, pause)
        return _output(from_dialogue(dialogue).with_clip(clip), cls)


class MultiTalkSplitRecording(io.ComfyNode):
    """Cuts one recording of several people into a dialogue."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MultiTalkSplitRecording",
            display_name="MultiTalk Split Recording",
            search_aliases=["podcast", "interview", "diarization", "srt", "rttm", "subtitles", "stereo", "dialogue"],
            category=CATEGORY,
            description="Gives one recording to its speakers, by channel or by a transcript. The video sounds as the "
            "recording.",
            inputs=[
                io.Audio.Input("audio", tooltip="A podcast or an interview."),
                io.Combo.Input(
                    "split",
                    options=Split,
                    default=Split.CHANNELS,
                    tooltip="A speaker on each channel: the left one is speaker 1. Transcript: one mixed track, cut by "
                    "the text below.",
                ),
                io.String.Input(
                    "transcript",
                    multiline=True,
                    default="",
                    tooltip="The text of an .srt file whose lines begin with a name and a colon, or of an .rttm file. "
                    "Who speaks first is speaker 1.",
                ),
            ],
            outputs=[sockets.Dialogue.Output(display_name="dialogue")],
        )

    @classmethod
    def execute(cls, audio: dict, split: str, transcript: str) -> io.NodeOutput:
        recording = from_audio(audio, "audio")
        if Split(split) is Split.CHANNELS:
            return _output(split_channels(recording), cls)
        return _output(split_by_transcript(recording, read_transcript(transcript)), cls)


def from_dialogue(dialogue: object) -> Dialogue:
    """The dialogue of our nodes; an empty one of None.

    Raises:
        AudioError: it is something else.
    """
    if dialogue is None:
        return Dialogue()
    if not isinstance(dialogue, Dialogue):
        raise AudioError(f"dialogue must come from MultiTalk Dialogue, got {describe(dialogue)}. Connect that node.")
    return dialogue


def _output(dialogue: Dialogue, cls: type[io.ComfyNode]) -> io.NodeOutput:
    """The dialogue, and its timeline on the node."""
    if dialogue.num_speakers > MAX_SPEAKERS:
        raise AudioError(f"{dialogue.num_speakers} people speak; {MAX_SPEAKERS} can. Merge some of the names.")
    dialogue.speeches()  # refuses what cannot be said
    picture = from_uint8(draw_timeline(dialogue, COLORS)[None], low=0.0)
    return io.NodeOutput(dialogue, ui=ui.PreviewImage(picture, cls=cls))
