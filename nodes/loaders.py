"""Loaders, which check their files at once; the weights are read when a later node needs them."""

from __future__ import annotations

from pathlib import Path

from comfy_api.latest import io

from ..pipeline.config import Recipe
from ..pipeline.generation.recipes import find_recipe
from ..pipeline.memory.placement import MemoryConfig, MemoryLimit
from ..pipeline.weights import handles
from ..pipeline.weights.handles import Precision
from . import folders, sockets
from .comfy_host import compute_device, show_text

CATEGORY = "MultiTalk/loaders"
AUTO = "auto"


class MultiTalkLoadModel(io.ComfyNode):
    """The video transformer with its audio adapter."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MultiTalkLoadModel",
            display_name="MultiTalk Load Model",
            search_aliases=["multitalk", "infinitetalk", "flashtalk", "talking", "lip sync", "wan2.1 i2v"],
            category=CATEGORY,
            description="Wan2.1 I2V 14B and the audio weights of MultiTalk, InfiniteTalk or FlashTalk, in any "
            "packaging.",
            inputs=[
                io.Combo.Input(
                    "base",
                    options=folders.names(folders.BASE),
                    tooltip="Wan2.1 image-to-video 14B (480P or 720P), or a file that already holds the audio weights, "
                    "as FlashTalk's.",
                ),
                io.Combo.Input(
                    "adapter",
                    options=[AUTO, folders.NONE, *folders.names(folders.ADAPTER)],
                    default=AUTO,
                    tooltip="The MultiTalk or InfiniteTalk audio weights. Auto takes the first that fit the base; none "
                    "when the base already holds them.",
                ),
                io.Combo.Input(
                    "recipe",
                    options=[AUTO, *(recipe.value for recipe in Recipe)],
                    default=AUTO,
                    tooltip="The model that the audio weights belong to, which decides how it is run. The files do not "
                    "tell; auto goes by their name, or their folder's.",
                ),
                io.Combo.Input(
                    "precision",
                    options=Precision,
                    default=Precision.AUTO,
                    tooltip="What the network computes in. Auto takes bfloat16 on a GPU that has it, float32 on a CPU.",
                ),
                io.Combo.Input(
                    "memory",
                    options=MemoryLimit,
                    default=MemoryLimit.AUTO,
                    tooltip="How much of the GPU the model may take; what does not fit is streamed block by block.",
                ),
                io.Int.Input(
                    "resident_blocks",
                    default=-1,
                    min=-1,
                    max=100,
                    advanced=True,
                    tooltip="Blocks that never leave the GPU; -1 lets the memory setting decide.",
                ),
            ],
            outputs=[sockets.Model.Output(display_name="model")],
        )

    @classmethod
    def execute(
        cls, base: str, adapter: str, recipe: str, precision: str, memory: str, resident_blocks: int
    ) -> io.NodeOutput:
        base_path = folders.path(folders.BASE, base)
        adapter_path = _adapter_path(adapter, base_path)
        files = handles.TransformerFiles(
            base=base_path,
            adapter=adapter_path,
            recipe=find_recipe(adapter_path or base_path) if recipe == AUTO else Recipe(recipe),
            dtype=Precision(precision).on(compute_device()),
            memory=MemoryConfig(MemoryLimit(memory), None if resident_blocks < 0 else resident_blocks),
        )
        show_text(files.check())
        return io.NodeOutput(files)


def _adapter_path(adapter: str, base: Path) -> Path | None:
    """The file of the audio weights; None where the base holds them.

    Raises:
        WeightsError: none of the listed files fits the base.
    """
    if adapter == AUTO:
        listed = (folders.path(folders.ADAPTER, name) for name in folders.names(folders.ADAPTER))
        return handles.find_adapter(base, listed)
    return None if adapter == folders.NONE else folders.path(folders.ADAPTER, adapter)


class MultiTalkLoadLora(io.ComfyNode):
    """A further LoRA on a model."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MultiTalkLoadLora",
            display_name="MultiTalk Load LoRA",
            search_aliases=["lightx2v", "fusionx", "few steps"],
            category=CATEGORY,
            description="Adds a Wan2.1 LoRA, for example lightx2v or FusionX for few steps. Chain it for several.",
            inputs=[
                sockets.Model.Input("model", tooltip="The model, or the output of another LoRA."),
                io.Combo.Input(
                    "lora",
                    options=folders.names(folders.LORA),
                    tooltip="A LoRA for Wan2.1 14B; what does not fit is skipped and told in the log.",
                ),
                io.Float.Input(
                    "strength", default=1.0, min=-10.0, max=10.0, step=0.05, tooltip="1 is the trained strength."
                ),
            ],
            outputs=[sockets.Model.Output(display_name="model")],
        )

    @classmethod
    def execute(cls, model: handles.TransformerFiles, lora: str, strength: float) -> io.NodeOutput:
        files = model.with_lora(folders.path(folders.LORA, lora), strength)
        files.check()
        return io.NodeOutput(files)


class MultiTalkLoadTextEncoder(io.ComfyNode):
    """umT5-XXL, the encoder of the prompt."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MultiTalkLoadTextEncoder",
            display_name="MultiTalk Load Text Encoder",
            search_aliases=["umt5", "t5"],
            category=CATEGORY,
            description="umT5-XXL. CLIP Text Encode with the Wan text encoder may be used instead.",
            inputs=[
                io.Combo.Input(
                    "file",
                    options=folders.names(folders.TEXT_ENCODER),
                    tooltip="umT5-XXL of Wan2.1 in any packaging; not the T5-XXL of Flux and SD3.",
                )
            ],
            outputs=[sockets.TextEncoder.Output(display_name="text_encoder")],
        )

    @classmethod
    def execute(cls, file: str) -> io.NodeOutput:
        return io.NodeOutput(handles.text_encoder(folders.path(folders.TEXT_ENCODER, file), compute_device()))


class MultiTalkLoadImageEncoder(io.ComfyNode):
    """CLIP ViT-H, the encoder of the portrait."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MultiTalkLoadImageEncoder",
            display_name="MultiTalk Load Image Encoder",
            search_aliases=["clip vision"],
            category=CATEGORY,
            description="CLIP ViT-H. The output of core's CLIP Vision Encode may be used instead.",
            inputs=[
                io.Combo.Input(
                    "file",
                    options=folders.names(folders.IMAGE_ENCODER),
                    tooltip="CLIP ViT-H/14 (clip_vision_h or the open-clip XLM-RoBERTa file of Wan2.1).",
                )
            ],
            outputs=[sockets.ImageEncoder.Output(display_name="image_encoder")],
        )

    @classmethod
    def execute(cls, file: str) -> io.NodeOutput:
        return io.NodeOutput(handles.image_encoder(folders.path(folders.IMAGE_ENCODER, file)))


class MultiTalkLoadVAE(io.ComfyNode):
    """Wan's video VAE."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MultiTalkLoadVAE",
            display_name="MultiTalk Load VAE",
            search_aliases=["wan vae"],
            category=CATEGORY,
            description="Wan2.1's video VAE. Core's Load VAE may be used instead; this one decodes in constant memory.",
            inputs=[
                io.Combo.Input("file", options=folders.names(folders.VAE), tooltip="wan_2.1_vae or Wan2.1_VAE.pth."),
                io.Combo.Input(
                    "precision",
                    options=Precision,
                    default=Precision.AUTO,
                    optional=True,
                    tooltip="What the VAE computes in. Auto takes bfloat16 on a GPU that has it, else float32.",
                ),
            ],
            outputs=[sockets.Vae.Output(display_name="vae")],
        )

    @classmethod
    def execute(cls, file: str, precision: str = Precision.AUTO) -> io.NodeOutput:
        return io.NodeOutput(handles.vae(folders.path(folders.VAE, file), compute_device(), Precision(precision)))


class MultiTalkLoadAudioEncoder(io.ComfyNode):
    """wav2vec2, the encoder of the speech."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MultiTalkLoadAudioEncoder",
            display_name="MultiTalk Load Audio Encoder",
            search_aliases=["wav2vec2", "speech", "voice", "lip sync"],
            category=CATEGORY,
            description="chinese-wav2vec2-base, which MultiTalk was trained with.",
            inputs=[
                io.Combo.Input(
                    "file",
                    options=folders.names(folders.AUDIO_ENCODER),
                    tooltip="chinese-wav2vec2-base as a file or a folder; the large English one is for Wan2.2 S2V.",
                ),
                io.Boolean.Input(
                    "allow_other",
                    default=False,
                    advanced=True,
                    tooltip="Take an encoder of the same shape that MultiTalk was not trained with.",
                ),
            ],
            outputs=[sockets.AudioEncoder.Output(display_name="audio_encoder")],
        )

    @classmethod
    def execute(cls, file: str, allow_other: bool) -> io.NodeOutput:
        return io.NodeOutput(handles.audio_encoder(folders.path(folders.AUDIO_ENCODER, file), allow_other))
