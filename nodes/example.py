"""Bundled portraits and voices, so that a first graph needs no files of one's own."""

from __future__ import annotations

from pathlib import Path

from comfy_api.latest import io

from ..pipeline.choice import Choice
from ..pipeline.media.picture import read_image
from ..pipeline.media.pixels import from_uint8
from ..pipeline.media.sound import read_sound
from .conversions import to_audio

ASSETS = Path(__file__).parents[1] / "demo" / "assets"


class Example(Choice):
    """The bundled pictures: drawn faces for the small model, and a photograph."""

    ONE = "a drawn face"
    TWO = "two drawn faces"
    PHOTOGRAPH = "a photograph"

    @property
    def files(self) -> tuple[str, str, str]:
        """File names of the picture and of two voices; the first is the one for a single speaker."""
        picture = {Example.ONE: "drawn_portrait.png", Example.TWO: "drawn_two.png"}.get(self, "portrait.jpg")
        first = "speech.wav" if self is Example.PHOTOGRAPH else "drawn_speech.wav"
        return picture, first, "drawn_answer.wav"


class MultiTalkExample(io.ComfyNode):
    """A portrait and voices to try the other nodes with."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MultiTalkExample",
            display_name="MultiTalk Example",
            category="MultiTalk",
            description="A bundled portrait and voices to try the other nodes with. The small model knows drawn faces.",
            inputs=[
                io.Combo.Input(
                    "example",
                    options=Example,
                    default=Example.ONE,
                    tooltip="Who is in the picture; demo/assets/SOURCES.md names the sources.",
                )
            ],
            outputs=[
                io.Image.Output(display_name="image"),
                io.Audio.Output(display_name="voice_1"),
                io.Audio.Output(display_name="voice_2"),
            ],
        )

    @classmethod
    def execute(cls, example: str) -> io.NodeOutput:
        picture, *voices = Example(example).files
        pixels = read_image(ASSETS / picture)
        return io.NodeOutput(
            from_uint8(pixels, low=0.0)[None], *(to_audio(read_sound(ASSETS / voice)) for voice in voices)
        )
