"""From IMAGE and prompt to what the sampler is told to show, with our encoders or with core's."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from comfy_api.latest import io, ui
from torch import Tensor

from ..pipeline.conditioning.prompts import encode_prompts
from ..pipeline.conditioning.reference_image import BUCKETS, bucket, check_size, fit_frames
from ..pipeline.conditioning.speakers import draw_places
from ..pipeline.config import FPS_RANGE, Resolution, check_fps
from ..pipeline.errors import ConfigError, Problems
from ..pipeline.host import Progress
from ..pipeline.media.pixels import from_uint8
from ..pipeline.media.video import indices_at_25
from ..pipeline.preflight.checks import check_masks
from ..pipeline.shapes import FPS
from ..pipeline.weights.handles import Lazy
from . import sockets
from .comfy_host import ComfyHost, at_work
from .conversions import (
    CoreVae,
    describe,
    from_clip_vision,
    from_conditioning,
    from_image,
)
from .speakers import Speaker, places_of

if TYPE_CHECKING:
    from comfy.clip_vision import Output
    from comfy.sd import VAE

CATEGORY = "MultiTalk"
CUSTOM = "custom"


class MultiTalkCondition(io.ComfyNode):
    """The portrait and the prompt, fitted and encoded."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MultiTalkCondition",
            display_name="MultiTalk Condition",
            search_aliases=["talking head", "portrait", "avatar", "dub", "lip sync"],
            category=CATEGORY,
            description="Resizes and centre-crops the image and encodes the prompt. Core's encoders may be connected "
            "instead of ours.",
            inputs=[
                io.Image.Input("image", tooltip="The portrait; of a batch the first, or all for a video to dub."),
                io.MultiType.Input(
                    "vae",
                    types=[sockets.Vae, io.Vae],
                    tooltip="MultiTalk Load VAE, or core's Load VAE with wan_2.1_vae.",
                ),
                io.MultiType.Input(
                    "image_encoder",
                    types=[sockets.ImageEncoder, io.ClipVisionOutput],
                    tooltip="MultiTalk Load Image Encoder, or core's CLIP Vision Encode (crop none) of a picture that "
                    "already has the video's shape.",
                ),
                sockets.TextEncoder.Input(
                    "text_encoder",
                    optional=True,
                    tooltip="Reads the prompts below; not needed with positive and negative.",
                ),
                io.Conditioning.Input("positive", optional=True, tooltip="From CLIP Text Encode, instead of prompt."),
                io.Conditioning.Input(
                    "negative", optional=True, tooltip="From CLIP Text Encode, instead of negative_prompt."
                ),
                sockets.Speakers.Input(
                    "speakers",
                    optional=True,
                    tooltip="Who is where. Without it several voices share the width, from left to right.",
                ),
                io.Mask.Input(
                    "ref_target_masks",
                    optional=True,
                    tooltip="A batch with a mask for each speaker, instead of speakers.",
                ),
                io.String.Input(
                    "prompt",
                    default="A person is talking to the camera.",
                    multiline=True,
                    tooltip="What the video shows. | parts prompts for the windows of a long video.",
                ),
                io.String.Input(
                    "negative_prompt",
                    default="",
                    multiline=True,
                    tooltip="What it should not show; empty takes the published one.",
                ),
                io.Combo.Input(
                    "resolution",
                    options=[*(size.value for size in Resolution), CUSTOM],
                    default=Resolution.P480.value,
                    tooltip="The nearest shape of about 640x640 or 960x960 pixels; custom takes width and height.",
                ),
                io.Int.Input("width", default=832, min=64, max=4096, step=16, tooltip="For custom, in pixels."),
                io.Int.Input("height", default=480, min=64, max=4096, step=16, tooltip="For custom, in pixels."),
                io.Boolean.Input(
                    "dub_video",
                    default=False,
                    advanced=True,
                    tooltip="Takes the whole batch as a video whose lips are changed (InfiniteTalk).",
                ),
                io.Float.Input(
                    "source_fps",
                    default=25.0,
                    min=FPS_RANGE[0],
                    max=FPS_RANGE[1],
                    step=0.01,
                    optional=True,
                    advanced=True,
                    tooltip="For dub_video: the batch's frames a second, as core's Get Video Components gives them.",
                ),
            ],
            outputs=[
                sockets.Conditioning.Output(display_name="conditioning"),
                io.Image.Output(display_name="fitted_image"),
            ],
        )

    @classmethod
    def execute(
        cls,
        image: Tensor,
        vae: Lazy | VAE,
        image_encoder: Lazy | Output,
        prompt: str,
        negative_prompt: str,
        resolution: str,
        width: int,
        height: int,
        dub_video: bool,
        source_fps: float = FPS,
        text_encoder: Lazy | None = None,
        positive: list | None = None,
        negative: list | None = None,
        speakers: tuple[Speaker, ...] | None = None,
        ref_target_masks: Tensor | None = None,
    ) -> io.NodeOutput:
        from ..pipeline.conditioning.conditioning import Conditioning  # imports diffusers, which takes seconds

        pictures = from_image(image)
        indices = source_indices(len(pictures), source_fps) if dub_video else [0]
        rows, columns = pictures.shape[1:3]
        target = target_size(resolution, width, height, rows, columns)
        places = places_of(speakers, ref_target_masks)
        problems = Problems()
        masks = check_masks(places, (rows, columns), target, problems)
        problems.raise_errors()
        fitted = fit_frames((pictures[index] for index in indices), len(indices), target)
        prompts, negative_embeds = _encode_prompts(text_encoder, prompt, negative_prompt, positive, negative)
        conditioning = Conditioning(
            source=fitted,
            prompt_embeds=prompts,
            negative_embeds=negative_embeds,
            vae=vae.model if isinstance(vae, Lazy) else CoreVae(vae),
            image_encoder=image_encoder.model if isinstance(image_encoder, Lazy) else None,
            image_embeds=None if isinstance(image_encoder, Lazy) else from_clip_vision(image_encoder, "image_encoder"),
            speaker_masks=masks,
            image_hw=(rows, columns),
        )
        preview = fitted[:1] if masks is None else draw_places(fitted[0], masks)[None]
        preview = ui.PreviewImage(from_uint8(preview, low=0.0), cls=cls)
        return io.NodeOutput(conditioning, from_uint8(fitted[:1], low=0.0), ui=preview)


def source_indices(num_pictures: int, fps: float) -> list[int]:
    """The pictures of a video at `fps` that are shown in each of the model's 25 frames a second.

    Raises:
        ConfigError: there is no such rate.
    """
    check_fps(fps)
    return indices_at_25(torch.arange(num_pictures) / fps).tolist()


def target_size(resolution: str, width: int, height: int, rows: int, columns: int) -> tuple[int, int]:
    """Height and width of the video of a picture of `rows x columns` pixels.

    Raises:
        ConfigError: a custom side is no multiple of 16.
    """
    if resolution == CUSTOM:
        return check_size(height, width)
    return bucket(rows, columns, BUCKETS[Resolution(resolution)])


def _encode_prompts(
    text_encoder: Lazy | None, prompt: str, negative_prompt: str, positive: list | None, negative: list | None
) -> tuple[tuple[Tensor, ...], Tensor]:
    """Prompt embeddings for each window, and the negative ones."""
    if text_encoder is None and (positive is None or negative is None):
        raise ConfigError("There is nothing to encode the prompt with. Connect text_encoder, or positive and negative.")
    prompts = None if positive is None else (from_conditioning(positive, "positive"),)
    negative_embeds = None if negative is None else from_conditioning(negative, "negative")
    if prompts is not None and negative_embeds is not None:
        return prompts, negative_embeds
    if not isinstance(text_encoder, Lazy):
        raise ConfigError(
            f"text_encoder must be one, got {describe(text_encoder)}. Connect MultiTalk Load Text Encoder."
        )
    host = ComfyHost()
    host.report(Progress("prompt", 0))
    encoder = text_encoder.model
    with at_work(encoder.model, host):
        encoded, negative_encoded = encode_prompts(encoder, prompt, negative_prompt)
    return prompts or encoded, negative_encoded if negative_embeds is None else negative_embeds
