"""Pictures and voices: the bundled examples, and files of ComfyUI's input folder as core's loaders list them."""

from __future__ import annotations

from comfy_api.latest import io

from ..pipeline.media.picture import read_levels, to_levels, to_rgb
from ..pipeline.media.sound import read_sound
from . import folders
from .conversions import to_audio, to_mask

CATEGORY = "MultiTalk/loaders"


class MultiTalkLoadImage(io.ComfyNode):
    """A picture of the bundled examples or of ComfyUI's input folder, read as the command line reads it."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MultiTalkLoadImage",
            display_name="MultiTalk Load Image",
            search_aliases=["portrait", "example", "face"],
            category=CATEGORY,
            description="A picture: an example of this pack, or one of your own.",
            inputs=[
                io.Combo.Input(
                    "image",
                    options=folders.media_files("image"),
                    upload=io.UploadType.image,
                    tooltip="Examples first, then your input folder. Upload, drop or paste your own.",
                ),
            ],
            outputs=[io.Image.Output(display_name="image"), io.Mask.Output(display_name="mask")],
        )

    @classmethod
    def validate_inputs(cls, image: str) -> bool | str:
        """A name beyond the list counts too, as the page's mask editor makes them."""
        return folders.check_media(image)

    @classmethod
    def fingerprint_inputs(cls, image: str) -> str:
        """Changes with the file."""
        return folders.media_version(image)

    @classmethod
    def execute(cls, image: str) -> io.NodeOutput:
        levels = to_levels(read_levels(folders.media_path(image)))
        colors = levels[..., :3] if folders.is_painted(image) and levels.ndim == 3 else levels
        return io.NodeOutput(to_rgb(colors)[None].float() / 255, to_mask(levels))


class MultiTalkLoadAudio(io.ComfyNode):
    """A voice of the bundled examples or of ComfyUI's input folder."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MultiTalkLoadAudio",
            display_name="MultiTalk Load Audio",
            search_aliases=["voice", "speech", "example"],
            category=CATEGORY,
            description="A voice: an example of this pack, or one of your own.",
            inputs=[
                io.Combo.Input(
                    "audio",
                    options=folders.media_files("audio"),
                    upload=io.UploadType.audio,
                    tooltip="Examples first, then sounds and videos of your input folder. Upload your own.",
                ),
            ],
            outputs=[io.Audio.Output(display_name="audio")],
        )

    @classmethod
    def validate_inputs(cls, audio: str) -> bool | str:
        """A name beyond the list counts too, such as that of a file in a folder below."""
        return folders.check_media(audio)

    @classmethod
    def fingerprint_inputs(cls, audio: str) -> str:
        """Changes with the file."""
        return folders.media_version(audio)

    @classmethod
    def execute(cls, audio: str) -> io.NodeOutput:
        return io.NodeOutput(to_audio(read_sound(folders.media_path(audio))))
