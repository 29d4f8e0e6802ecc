"""The kind of a file, from the names and shapes in its header: one of ours, or of the many that look like them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from .key_maps import VISION, WRAPPERS
from .source import Source


class Component(str, Enum):
    """A part of MultiTalk that comes in a file of its own; the value names the right file, for people."""

    TRANSFORMER = "the Wan2.1 image-to-video 14B model, e.g. wan2.1_i2v_480p_14B_*"
    ADAPTER = "MultiTalk's or InfiniteTalk's audio weights, e.g. multitalk.safetensors"
    MERGED = "a Wan2.1 image-to-video model with MultiTalk's audio weights inside"
    VAE = "the 16-channel Wan2.1 VAE, e.g. wan_2.1_vae.safetensors"
    TEXT_ENCODER = "the UMT5-XXL text encoder, e.g. umt5_xxl_fp8_e4m3fn_scaled.safetensors"
    IMAGE_ENCODER = "the ViT-H/14 CLIP vision encoder, clip_vision_h.safetensors"
    AUDIO_ENCODER = (
        "chinese-wav2vec2-base (12 layers of 768): wav2vec2-chinese-base_fp16.safetensors or the TencentGameMate folder"
    )
    LORA = "a LoRA for Wan2.1 14B"
    PREVIEWER = "the tiny preview decoder taew2_1"


@dataclass(frozen=True)
class Kind:
    """The kind of a file.

    Attributes:
        name: for people, with its article: "a Wan2.1 text-to-video model (16 input channels)".
        component: the part that it can serve as; None where it cannot be used here.
        advice: the cure, where naming the right file is not enough.
    """

    name: str
    component: Component | None = None
    advice: str = ""


class Header:
    """The names of a source's tensors without their wrappers, and their shapes."""

    def __init__(self, source: Source):
        self.shapes: Mapping[str, tuple[int, ...]] = {
            _without_wrappers(key): entry.shape for key, entry in source.entries.items()
        }

    def has(self, *endings: str) -> bool:
        """True if there is a tensor for each of the names; a name that ends in `.` or `_` is a beginning."""
        return all(self._has(name) for name in endings)

    def contains(self, *parts: str) -> bool:
        """True if one of `parts` stands in any name."""
        return any(part in key for part in parts for key in self.shapes)

    def axis(self, axis: int, *names: str) -> int:
        """The length of an axis of the first of `names` that is there; 0 without it."""
        shape = next((self.shapes[name] for name in names if name in self.shapes), ())
        return shape[axis] if -len(shape) <= axis < len(shape) else 0

    def layers(self, prefix: str) -> int:
        """The count of different numbers between `prefix` and the next dot."""
        rests = (key[len(prefix) :] for key in self.shapes if key.startswith(prefix))
        return len({rest.split(".")[0] for rest in rests if rest.split(".")[0].isdigit()})

    def _has(self, name: str) -> bool:
        if name.endswith((".", "_")):
            return any(key.startswith(name) for key in self.shapes)
        return name in self.shapes


def recognize(source: Source) -> Kind:
    """The kind of `source`, from its header alone."""
    header = Header(source)
    for test in (_lora, _adapter_like, _transformer, _text, _speech, _image, _vae):
        kind = test(header)
        if kind is not None:
            return kind
    first = ", ".join(list(source.entries)[:3])
    return Kind(f"none of the models that MultiTalk uses (its first tensors: {first})")


LORA_PART = re.compile(
    r"loras?[_.](down|up|A|B|magnitude|embedding)|lokr_|hada_|dora_scale|\.diff(_[bm])?$|oft_|\.[ab][12]\.weight$"
    r"|\.ia3_|\.on_input$|vera_lambda"
)
SPECIAL_LORAS = {  # by a part of the name of a tensor: those that need a network or a rule of their own
    r"dwpose_embedding": "a UniAnimate pose LoRA",
    r"\.q_loras\.": "a Stand-In identity LoRA",
    r"patch_embedding\.lora_": "a control LoRA with more input channels",
    r"dora_scale|lora_magnitude_vector": "a DoRA",
    r"boft_": "a BOFT adapter",
    r"oft_": "an OFT adapter",
    r"\.[ab][12]\.weight$": "a GLoRA",
    r"\.ia3_|\.on_input$": "an IA3 adapter",
    r"vera_lambda": "a VeRA",
    r"lokr_t2|hada_t[12]": "a LoRA of convolutions (Tucker)",
}


def _lora(header: Header) -> Kind | None:
    if not any(LORA_PART.search(key) for key in header.shapes):
        return None
    for part, name in SPECIAL_LORAS.items():
        if any(re.search(part, key) for key in header.shapes):
            return Kind(name, advice="It is not supported: use a plain LoRA for Wan2.1 14B")
    return Kind("a LoRA", Component.LORA, "Put it into the LoRA loader")


def _adapter_like(header: Header) -> Kind | None:
    """Files with MultiTalk's audio layers, or with those of models that learned from it."""
    if not header.has("audio_proj.proj1.weight") and not header.has("audio_proj.proj1.weight._data"):
        return None
    if (foreign := _foreign_layers(header)) is not None:
        return foreign
    if not header.contains("audio_cross_attn.kv_linear"):
        return Kind("an audio model of another family: it has no MultiTalk audio attention")
    if header.has("patch_embedding.weight"):
        problem = _wrong_base(header)
        return problem or Kind("Wan2.1 I2V with MultiTalk's audio weights", Component.MERGED)
    return Kind("MultiTalk's audio weights", Component.ADAPTER)


def _transformer(header: Header) -> Kind | None:
    has_blocks = header.has("blocks.0.self_attn.") or header.has("blocks.0.attn1.")
    has_blocks = has_blocks or any(key.startswith("blocks.") and ".self_attn." in key for key in header.shapes)
    if not has_blocks:
        return None
    if not header.has("patch_embedding.weight"):
        return Kind(
            "a part of a Wan model: its patch_embedding is missing",
            advice="A GGUF like this was not finished with fix_5d_tensors: download a complete one",
        )
    return _wrong_base(header) or Kind("Wan2.1 I2V", Component.TRANSFORMER)


FOREIGN_LAYERS: dict[str, tuple[str, ...]] = {  # parts of names that no plain Wan2.1 I2V and no adapter of ours has
    "a LongCat-Avatar model": ("audio_cross_attn.q_norm",),
    "a SkyReels-V3 model": ("audio_cross_attn.norm_q",),
    "a LiveAct model": ("self_attn.memory_proj_",),
    "a VACE model": ("vace_patch_embedding.", "vace_blocks."),
    "a Wan2.2 S2V model": ("casual_audio_encoder.",),
    "a HuMo model": ("audio_proj.audio_proj_glob_1.",),
    "a Wan2.2 Animate model": ("face_adapter.", "pose_patch_embedding."),
    "a FantasyTalking model": ("proj_model.proj.",),
    "a Wan Fun model with a reference or camera branch": ("ref_conv.", "control_adapter."),
    "a Wan first-and-last-frame model (FLF2V)": ("img_emb.emb_pos", "condition_embedder.image_embedder.pos_embed"),
}


def _foreign_layers(header: Header) -> Kind | None:
    return next((Kind(name) for name, parts in FOREIGN_LAYERS.items() if header.contains(*parts)), None)


def _wrong_base(header: Header) -> Kind | None:
    if (foreign := _foreign_layers(header)) is not None:
        return foreign
    width, channels = header.axis(0, "patch_embedding.weight"), header.axis(1, "patch_embedding.weight")
    has_image_branch = header.contains("cross_attn.k_img", "attn2.add_k_proj")
    if channels == 16:
        return Kind("a Wan2.1 text-to-video model (16 input channels)")
    if channels == 48 and width == 3072:
        return Kind("the Wan2.2 TI2V 5B model (48 input channels)")
    if channels != 36:
        return Kind(f"a Wan control or inpainting model ({channels} input channels instead of 36)")
    if not has_image_branch:
        return Kind(
            "a Wan2.2 image-to-video model (no CLIP image branch)",
            advice="The audio weights were trained on Wan2.1 I2V 14B: choose e.g. wan2.1_i2v_480p_14B_*",
        )
    if width == 1536:
        return Kind("a Wan 1.3B model")
    return None


def _text(header: Header) -> Kind | None:
    vocabulary = ("token_embedding.weight", "shared.weight", "token_embd.weight", "encoder.embed_tokens.weight",
                  "token_embedding.weight._data")  # fmt: skip
    if not header.has("encoder.final_layer_norm.weight") and not any(header.has(name) for name in vocabulary):
        return None
    if header.has("visual."):  # the text tower beside a vision tower
        return None
    tables = ("pos_embedding.embedding", "relative_attention_bias", "attn_rel_b")
    num_tables = sum(any(table in key for table in tables) and not key.startswith(("decoder.", "dec."))
                     for key in header.shapes)  # fmt: skip
    layers = max(header.layers(f"{block}.") for block in ("blocks", "encoder.block", "enc.blk"))
    if num_tables == 0:
        return Kind("a language model of another family (no relative position table)")
    if num_tables < layers:
        return Kind("a T5 text encoder as Flux and SD3 use it (positions in its first block only)")
    return Kind("umT5's encoder", Component.TEXT_ENCODER)


def _speech(header: Header) -> Kind | None:
    if header.has("encoder.embed_positions.weight") or header.has("encoder.conv1.weight", "encoder.layers."):
        return Kind("a Whisper model")
    if header.has("feature_extractor.conv_layers.0.0.weight"):
        return Kind("a wav2vec2 model in fairseq's own layout")
    if not header.has("feature_extractor.conv_layers.0.conv.weight"):
        return None
    width, layers = header.axis(0, "encoder.layer_norm.bias"), header.layers("encoder.layers.")
    is_large = header.has("feature_extractor.conv_layers.1.layer_norm.") or header.has(
        "feature_extractor.conv_layers.0.conv.bias"
    )
    if is_large or width == 1024 or layers > 12:
        return Kind(f"a large wav2vec2 model ({layers} layers of {width}), such as Wan2.2-S2V's encoder")
    if header.contains("masked_spec_embed") or header.has("encoder.pos_conv_embed."):
        tuned = "fine-tuned English wav2vec2" if header.has("lm_head.weight") else "wav2vec2"
        return Kind(tuned, Component.AUDIO_ENCODER)
    return Kind("a speech model of another family")


OTHER_TOWERS = {768: "ViT-B", 1024: "ViT-L/14", 1152: "SigLIP", 1408: "ViT-g/14", 1664: "ViT-bigG/14"}


def _image(header: Header) -> Kind | None:
    table = "embeddings.position_embedding.weight"
    positions = (
        "visual.pos_embedding",
        "visual.positional_embedding",
        table,
        *(f"{prefix}{table}" for prefix in VISION),
    )
    if not any(header.has(name) for name in positions):
        return None
    width, tokens = header.axis(-1, *positions), header.axis(-2, *positions)
    if width in OTHER_TOWERS:
        return Kind(f"a {OTHER_TOWERS[width]} vision encoder (width {width})")
    if tokens > 257 or not header.contains("cls_embedding", "class_embedding"):
        return Kind(f"a vision encoder with {tokens} positions instead of 257")  # ViT-H at a larger image
    return Kind("CLIP's vision encoder", Component.IMAGE_ENCODER)


def _vae(header: Header) -> Kind | None:
    if header.has("decoder.22.bias") or header.has("decoder.1.weight", "encoder.0.weight"):
        return Kind("a tiny preview decoder", Component.PREVIEWER)
    channels = header.axis(0, "conv2.weight", "post_quant_conv.weight")
    if channels == 16 and _is_video(header):
        return Kind("Wan2.1's VAE", Component.VAE)
    if channels == 48:
        return Kind("the 48-channel Wan2.2 VAE")
    if header.has("decoder.conv_in.weight") or header.has("decoder.conv1.weight"):
        return Kind("a VAE of another model")
    return None


def _is_video(header: Header) -> bool:
    return len(header.shapes.get("decoder.conv1.weight", header.shapes.get("decoder.conv_in.weight", ()))) == 5


def _without_wrappers(key: str) -> str:
    for wrapper in (*WRAPPERS, "wav2vec2.", "first_stage_model.", "vae.", "text_encoders.umt5xxl.transformer."):
        key = key.removeprefix(wrapper)
    return key.replace("multitalk_audio_proj.", "audio_proj.", 1)
