"""The people in the picture: each with a place and, where it is connected here, a voice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ..pipeline.audio.waveform import Sound
from ..pipeline.conditioning.speakers import Place
from ..pipeline.errors import AudioError, ImageError
from . import sockets
from .conversions import describe, from_audio, from_boxes, from_image, from_mask, from_masks

CATEGORY = "MultiTalk"
MAX_SPEAKERS = 4


@dataclass(frozen=True)
class Speaker:
    """A person in the picture. The voice is None where it is connected to MultiTalk Encode Audio instead."""

    place: Place
    voice: Sound | None = None


class MultiTalkSpeaker(io.ComfyNode):
    """One speaker's place in the picture."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MultiTalkSpeaker",
            display_name="MultiTalk Speaker",
            search_aliases=["talking", "speech", "who speaks", "two people", "dialogue"],
            category=CATEGORY,
            description="A speaker's place: a mask, or a box in percent of the image. Chain one for each voice. Where "
            "one of several people speaks, one place is enough.",
            inputs=[
                sockets.Speakers.Input("speakers", optional=True, tooltip="The speakers before this one."),
                io.Mask.Input(
                    "mask", optional=True, tooltip="The whole person in white; it is used instead of the box."
                ),
                *(
                    io.Float.Input(
                        side,
                        default=default,
                        min=0.0,
                        max=100.0,
                        step=0.5,
                        tooltip=f"The box's {side} edge, in percent.",
                    )
                    for side, default in (("left", 0.0), ("top", 0.0), ("right", 50.0), ("bottom", 100.0))
                ),
                io.Audio.Input(
                    "audio",
                    optional=True,
                    tooltip="This person's voice. Connect speakers to MultiTalk Encode Audio too, which then needs no "
                    "other voice.",
                ),
            ],
            outputs=[sockets.Speakers.Output(display_name="speakers")],
        )

    @classmethod
    def execute(
        cls,
        left: float,
        top: float,
        right: float,
        bottom: float,
        speakers: tuple[Speaker, ...] | None = None,
        mask: Tensor | None = None,
        audio: dict | None = None,
    ) -> io.NodeOutput:
        if mask is None:
            place = Place(box=(left, top, right, bottom), percent=True)
        else:
            place = Place(mask=from_mask(mask, "mask"))
        voice = None if audio is None else from_audio(audio, "audio")
        return io.NodeOutput((*from_speakers(speakers), Speaker(place, voice)))


class MultiTalkSpeakers(io.ComfyNode):
    """All speakers' places, drawn with the mouse or detected."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        canvas = []
        if hasattr(io, "BoundingBoxes"):  # since ComfyUI 0.33
            canvas = [
                io.BoundingBoxes.Input(
                    "boxes",
                    optional=True,
                    default=[],
                    tooltip="A box around each person: the first one is speaker 1's.",
                )
            ]
        return io.Schema(
            node_id="MultiTalkSpeakers",
            display_name="MultiTalk Speakers",
            search_aliases=["talking", "who speaks", "two people", "dialogue", "face detection", "bounding box"],
            category=CATEGORY,
            description="Boxes on the picture say who speaks: box 1 is voice 1. Draw them with the mouse (ComfyUI "
            "0.33, Nodes 2.0), or connect a face detector.",
            inputs=[
                io.Image.Input("background", optional=True, tooltip="The picture, to draw on and to measure boxes by."),
                sockets.BoundingBox.Input(
                    "bboxes",
                    optional=True,
                    tooltip="Boxes in pixels of the picture, from a detector of faces or people. Speaker 1 is the "
                    "leftmost. They are used instead of drawn ones.",
                    extra_dict={"forceInput": True},  # a socket; the page has four number fields for the type
                ),
                *(
                    io.Audio.Input(
                        f"audio_{k}",
                        optional=True,
                        tooltip=f"The voice of the person in box {k}. Connect speakers to MultiTalk Encode Audio too, "
                        f"which then needs no other voice.",
                    )
                    for k in range(1, MAX_SPEAKERS + 1)
                ),
                io.Int.Input(
                    "width", default=1024, min=64, max=16384, step=1, tooltip="Width of the canvas, in pixels."
                ),
                io.Int.Input(
                    "height", default=1024, min=64, max=16384, step=1, tooltip="Height of the canvas, in pixels."
                ),
                *canvas,
            ],
            outputs=[sockets.Speakers.Output(display_name="speakers")],
        )

    @classmethod
    def execute(
        cls,
        width: int,
        height: int,
        background: Tensor | None = None,
        bboxes: object = None,
        boxes: list | None = None,
        **voices: dict,
    ) -> io.NodeOutput:
        if bboxes is None:
            places = from_boxes(boxes or [], width, height, "boxes")
        else:
            if background is not None:
                height, width = from_image(background, "background").shape[1:3]
            places = sorted(from_boxes(bboxes, width, height, "bboxes"), key=_middle)
        sounds = [from_audio(voice, name) for name, voice in sorted(voices.items())]
        return io.NodeOutput(_speakers(places, sounds))


def from_speakers(speakers: object) -> tuple[Speaker, ...]:
    """The speakers of our Speaker nodes; none of None.

    Raises:
        ImageError: it is something else.
    """
    if speakers is None:
        return ()
    if not isinstance(speakers, tuple) or not all(isinstance(speaker, Speaker) for speaker in speakers):
        raise ImageError(f"speakers must come from MultiTalk Speaker, got {describe(speakers)}. Connect that node.")
    return speakers


def places_of(speakers: tuple[Speaker, ...] | None, masks: Tensor | None) -> tuple[Place, ...]:
    """The speakers' places, or the masks; none where neither is given."""
    if speakers or masks is None:
        return tuple(speaker.place for speaker in from_speakers(speakers))
    return tuple(Place(mask=mask) for mask in from_masks(masks, "ref_target_masks"))


def voices_of(speakers: tuple[Speaker, ...] | None, voices: Mapping[str, Any]) -> list[Sound]:
    """The speakers' own voices, or those of the sockets `audio_1`, `audio_2`, ... in their order.

    Raises:
        AudioError: there are both, or some speakers have a voice and others none.
    """
    own = [speaker.voice for speaker in from_speakers(speakers)]
    sounds = [voice for voice in own if voice is not None]
    if not sounds:
        return [from_audio(voice, name) for name, voice in sorted(voices.items())]
    if voices:
        raise AudioError(f"The speakers have their voices, and there is {min(voices)} too. Disconnect one of them.")
    if len(sounds) < len(own):
        silent = own.index(None) + 1
        raise AudioError(f"Speaker {silent} of {len(own)} has no voice. Connect one; Empty Audio is a silent one.")
    return sounds


def _speakers(places: Sequence[Place], sounds: Sequence[Sound]) -> tuple[Speaker, ...]:
    """Box n with voice n; voices without boxes share the width of the picture.

    Raises:
        ImageError: there are boxes and voices, but not as many.
    """
    if not sounds:
        return tuple(map(Speaker, places))
    places = places or [Place()] * len(sounds)
    if len(places) != len(sounds):
        raise ImageError(
            f"{len(places)} boxes for {len(sounds)} voices. Draw one box for each, or set the detector's number of "
            f"faces to {len(sounds)}."
        )
    return tuple(map(Speaker, places, sounds))


def _middle(place: Place) -> float:
    """The horizontal middle of a box."""
    assert place.box is not None, "a box of a detector"
    return place.box[0] + place.box[2]
