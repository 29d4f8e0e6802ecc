"""The names a weight has in other packagings, and the one it has in our modules.

A rule names a module path; whatever follows it (`.weight`, `.bias`, a quantiser's `.scale_weight`) rides along. Rules
are anchored: `cross_attn` must not be found inside `audio_cross_attn`. Every function takes a name of any known
packaging, ours included, and gives back None for a name that is no part of the component.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

WRAPPERS = ("model.diffusion_model.", "diffusion_model.", "transformer.", "module.", "model.", "net.")

TRANSFORMER = {  # native Wan -> diffusers; {i} is a block
    "patch_embedding": "patch_embedding",
    "text_embedding.0": "condition_embedder.text_embedder.linear_1",
    "text_embedding.2": "condition_embedder.text_embedder.linear_2",
    "time_embedding.0": "condition_embedder.time_embedder.linear_1",
    "time_embedding.2": "condition_embedder.time_embedder.linear_2",
    "time_projection.1": "condition_embedder.time_proj",
    "img_emb.proj.0": "condition_embedder.image_embedder.norm1",
    "img_emb.proj.1": "condition_embedder.image_embedder.ff.net.0.proj",
    "img_emb.proj.3": "condition_embedder.image_embedder.ff.net.2",
    "img_emb.proj.4": "condition_embedder.image_embedder.norm2",
    "head.modulation": "scale_shift_table",
    "head.head": "proj_out",
    "blocks.{i}.modulation": "blocks.{i}.scale_shift_table",
    "blocks.{i}.norm3": "blocks.{i}.norm2",  # diffusers counts norms in the order of their use
    "blocks.{i}.self_attn.q": "blocks.{i}.attn1.to_q",
    "blocks.{i}.self_attn.k": "blocks.{i}.attn1.to_k",
    "blocks.{i}.self_attn.v": "blocks.{i}.attn1.to_v",
    "blocks.{i}.self_attn.o": "blocks.{i}.attn1.to_out.0",
    "blocks.{i}.self_attn.norm_q": "blocks.{i}.attn1.norm_q",
    "blocks.{i}.self_attn.norm_k": "blocks.{i}.attn1.norm_k",
    "blocks.{i}.cross_attn.q": "blocks.{i}.attn2.to_q",
    "blocks.{i}.cross_attn.k": "blocks.{i}.attn2.to_k",
    "blocks.{i}.cross_attn.v": "blocks.{i}.attn2.to_v",
    "blocks.{i}.cross_attn.o": "blocks.{i}.attn2.to_out.0",
    "blocks.{i}.cross_attn.norm_q": "blocks.{i}.attn2.norm_q",
    "blocks.{i}.cross_attn.norm_k": "blocks.{i}.attn2.norm_k",
    "blocks.{i}.cross_attn.k_img": "blocks.{i}.attn2.add_k_proj",
    "blocks.{i}.cross_attn.v_img": "blocks.{i}.attn2.add_v_proj",
    "blocks.{i}.cross_attn.norm_k_img": "blocks.{i}.attn2.norm_added_k",
    "blocks.{i}.ffn.0": "blocks.{i}.ffn.net.0.proj",
    "blocks.{i}.ffn.2": "blocks.{i}.ffn.net.2",
    "blocks.{i}.audio_cross_attn.q_linear": "blocks.{i}.audio_cross_attn.q_linear",
    "blocks.{i}.audio_cross_attn.kv_linear": "blocks.{i}.audio_cross_attn.kv_linear",
    "blocks.{i}.audio_cross_attn.proj": "blocks.{i}.audio_cross_attn.proj",
    "blocks.{i}.norm_x": "blocks.{i}.norm_x",
    **{f"audio_proj.{name}": f"audio_proj.{name}" for name in ("proj1", "proj1_vf", "proj2", "proj3", "norm")},
}

TEXT = {  # native Wan -> transformers
    "token_embedding": "shared",
    "norm": "encoder.final_layer_norm",
    "blocks.{i}.norm1": "encoder.block.{i}.layer.0.layer_norm",
    "blocks.{i}.norm2": "encoder.block.{i}.layer.1.layer_norm",
    **{f"blocks.{{i}}.attn.{x}": f"encoder.block.{{i}}.layer.0.SelfAttention.{x}" for x in "qkvo"},
    "blocks.{i}.pos_embedding.embedding": "encoder.block.{i}.layer.0.SelfAttention.relative_attention_bias",
    "blocks.{i}.ffn.gate.0": "encoder.block.{i}.layer.1.DenseReluDense.wi_0",
    "blocks.{i}.ffn.fc1": "encoder.block.{i}.layer.1.DenseReluDense.wi_1",
    "blocks.{i}.ffn.fc2": "encoder.block.{i}.layer.1.DenseReluDense.wo",
}

TEXT_LLAMA_CPP = {
    "token_embd": "shared",
    "enc.output_norm": "encoder.final_layer_norm",
    "enc.blk.{i}.attn_norm": "encoder.block.{i}.layer.0.layer_norm",
    "enc.blk.{i}.ffn_norm": "encoder.block.{i}.layer.1.layer_norm",
    **{f"enc.blk.{{i}}.attn_{x}": f"encoder.block.{{i}}.layer.0.SelfAttention.{x}" for x in "qkvo"},
    "enc.blk.{i}.attn_rel_b": "encoder.block.{i}.layer.0.SelfAttention.relative_attention_bias",
    "enc.blk.{i}.ffn_gate": "encoder.block.{i}.layer.1.DenseReluDense.wi_0",
    "enc.blk.{i}.ffn_up": "encoder.block.{i}.layer.1.DenseReluDense.wi_1",
    "enc.blk.{i}.ffn_down": "encoder.block.{i}.layer.1.DenseReluDense.wo",
}

CLIP = {  # native `visual.` -> transformers; attention's to_qkv is split by `rename_clip`
    "cls_embedding": "embeddings.class_embedding",
    "pos_embedding": "embeddings.position_embedding.weight",
    "patch_embedding": "embeddings.patch_embedding",
    "pre_norm": "pre_layrnorm",
    "post_norm": "post_layernorm",
    "transformer.{i}.norm1": "encoder.layers.{i}.layer_norm1",
    "transformer.{i}.norm2": "encoder.layers.{i}.layer_norm2",
    "transformer.{i}.attn.to_qkv": "encoder.layers.{i}.self_attn.qkv",
    "transformer.{i}.attn.proj": "encoder.layers.{i}.self_attn.out_proj",
    "transformer.{i}.mlp.0": "encoder.layers.{i}.mlp.fc1",
    "transformer.{i}.mlp.2": "encoder.layers.{i}.mlp.fc2",
}

CLIP_OPEN_CLIP = {
    "class_embedding": "embeddings.class_embedding",
    "positional_embedding": "embeddings.position_embedding.weight",
    "conv1": "embeddings.patch_embedding",
    "ln_pre": "pre_layrnorm",
    "ln_post": "post_layernorm",
    "transformer.resblocks.{i}.ln_1": "encoder.layers.{i}.layer_norm1",
    "transformer.resblocks.{i}.ln_2": "encoder.layers.{i}.layer_norm2",
    "transformer.resblocks.{i}.attn.in_proj_weight": "encoder.layers.{i}.self_attn.qkv.weight",
    "transformer.resblocks.{i}.attn.in_proj_bias": "encoder.layers.{i}.self_attn.qkv.bias",
    "transformer.resblocks.{i}.attn.out_proj": "encoder.layers.{i}.self_attn.out_proj",
    "transformer.resblocks.{i}.mlp.c_fc": "encoder.layers.{i}.mlp.fc1",
    "transformer.resblocks.{i}.mlp.c_proj": "encoder.layers.{i}.mlp.fc2",
}

VAE_TOP = {  # native -> diffusers; `rename_vae` numbers what is inside the blocks
    "conv1": "quant_conv",
    "conv2": "post_quant_conv",
    **{f"{side}.conv1": f"{side}.conv_in" for side in ("encoder", "decoder")},
    **{f"{side}.head.0": f"{side}.norm_out" for side in ("encoder", "decoder")},
    **{f"{side}.head.2": f"{side}.conv_out" for side in ("encoder", "decoder")},
    **{f"{side}.middle.0": f"{side}.mid_block.resnets.0" for side in ("encoder", "decoder")},
    **{f"{side}.middle.1": f"{side}.mid_block.attentions.0" for side in ("encoder", "decoder")},
    **{f"{side}.middle.2": f"{side}.mid_block.resnets.1" for side in ("encoder", "decoder")},
    "encoder.downsamples.{i}": "encoder.down_blocks.{i}",
}
VAE_RESIDUAL = {"residual.0": "norm1", "residual.2": "conv1", "residual.3": "norm2", "residual.6": "conv2",
                "shortcut": "conv_shortcut"}  # fmt: skip
VAE_OURS = re.compile(
    r"(quant_conv|post_quant_conv|(encoder|decoder)\.(conv_in|conv_out|norm_out|mid_block|down_blocks|up_blocks))\."
)

VISION = (  # before a vision tower's weights
    "visual.", "vision_model.", "clip_vision.vision_model.", "model.visual.", "model.vision_model.",
)  # fmt: skip

WAV2VEC2_OURS = re.compile(r"(feature_extractor\.|feature_projection\.|encoder\.(pos_conv_embed|layer_norm|layers)\.|"
                           r"masked_spec_embed$)")  # fmt: skip


def rename_transformer(key: str) -> str | None:
    """Our name of a weight of the video transformer or of its audio adapter."""
    key = _unwrap(key).replace("multitalk_audio_proj.", "audio_proj.", 1)
    return _by_table(key, _TRANSFORMER_RULES) or _if_ours(key, _TRANSFORMER_OURS)


def native_transformer_key(key: str) -> str:
    """The native Wan name of one of our transformer's weights; the inverse of `rename_transformer`."""
    native = _by_table(key, _TRANSFORMER_BACK)
    if native is None:
        raise KeyError(key)
    return native


def rename_text(key: str) -> str | None:
    """Our name of a weight of the umT5 encoder: native, transformers' or llama.cpp's; a decoder's is None."""
    key = _unwrap(key, "text_encoders.umt5xxl.transformer.", *WRAPPERS)
    if key == "encoder.embed_tokens.weight":  # the same table as `shared`
        return "shared.weight"
    return _by_table(key, _TEXT_RULES) or _if_ours(key, _TEXT_OURS)


def native_text_key(key: str) -> str:
    """The native Wan name of one of our text encoder's weights."""
    native = _by_table(key, _TEXT_BACK)
    if native is None:
        raise KeyError(key)
    return native


def rename_vae(key: str) -> str | None:
    """Our name of a weight of the video VAE."""
    key = _unwrap(key, "first_stage_model.", "vae.", *WRAPPERS)
    if VAE_OURS.match(key):
        return key
    top = _rename_vae_upsampler(key) or _by_table(key, _VAE_RULES)
    if top is None:
        return None
    return re.sub(r"\b(residual\.[0236]|shortcut)\b", lambda match: VAE_RESIDUAL[match[1]], top)


def rename_wav2vec2(key: str) -> str | None:
    """Our name of a weight of the speech encoder; None for pre-training and fine-tuning heads."""
    key = _unwrap(key, "wav2vec2.", *WRAPPERS).removeprefix("wav2vec2.")
    key = key.replace(".conv.weight_g", ".conv.parametrizations.weight.original0")
    key = key.replace(".conv.weight_v", ".conv.parametrizations.weight.original1")
    return key if WAV2VEC2_OURS.match(key) else None


def rename_clip_key(key: str) -> str | None:
    """Our name of a weight of the image encoder, without `vision_model.`; fused attention keeps `self_attn.qkv`."""
    key = _unwrap(key, *VISION)
    return _by_table(key, _CLIP_RULES) or _if_ours(key, _CLIP_OURS)


def rename_clip(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A CLIP vision tower's weights under transformers' names, without `vision_model.`, fused attention split in three.

    Text towers and projection heads are left out.
    """
    renamed: dict[str, Tensor] = {}
    for key, tensor in state.items():
        ours = rename_clip_key(key)
        if ours is None:
            continue
        if ".self_attn.qkv." in ours:
            for name, part in zip("qkv", tensor.chunk(3), strict=True):
                renamed[ours.replace(".qkv.", f".{name}_proj.")] = part
        elif ours == "embeddings.class_embedding":
            renamed[ours] = tensor.flatten()
        elif ours == "embeddings.position_embedding.weight":
            renamed[ours] = tensor.reshape(-1, tensor.shape[-1])
        else:
            renamed[ours] = tensor
    return renamed


def for_live_keys(state: Mapping[str, Tensor], live_keys: Iterable[str]) -> dict[str, Tensor]:
    """`state` under the names of a live CLIP model: transformers 4 puts `vision_model.` in front, 5 does not."""
    prefix = "vision_model." if any(key.startswith("vision_model.") for key in live_keys) else ""
    return {prefix + key: tensor for key, tensor in state.items()}


def native_clip_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The native `visual.` weights of a transformers' vision tower; the inverse of `rename_clip`."""
    state = {key.removeprefix("vision_model."): tensor for key, tensor in state.items()}
    native = {}
    for key, tensor in state.items():
        if ".self_attn.q_proj." in key:
            parts = [state[key.replace(".q_proj.", f".{name}_proj.")] for name in "qkv"]
            native[_by_table(key.replace(".q_proj.", ".qkv."), _CLIP_BACK)] = torch.cat(parts)
        elif not re.search(r"self_attn\.[kv]_proj", key):
            native[_by_table(key, _CLIP_BACK)] = tensor
    native["cls_embedding"] = native["cls_embedding"][None, None]
    native["pos_embedding"] = native["pos_embedding"][None]
    return {f"visual.{key}": tensor for key, tensor in native.items()}


def _rename_vae_upsampler(key: str) -> str | None:
    """The native decoder numbers flat: three residual blocks, then an upsampler, four times."""
    match = re.match(r"decoder\.upsamples\.(\d+)\.(.+)", key)
    if not match:
        return None
    level, place = divmod(int(match[1]), 4)
    block = "upsamplers.0" if place == 3 else f"resnets.{place}"
    return f"decoder.up_blocks.{level}.{block}.{match[2]}"


def _unwrap(key: str, *prefixes: str) -> str:
    for prefix in prefixes or WRAPPERS:
        if key.startswith(prefix):
            return key[len(prefix) :]
    return key


def _compile(*tables: Mapping[str, str]) -> dict[re.Pattern, str]:
    return {_pattern(theirs): ours.replace("{i}", r"\1") for table in tables for theirs, ours in table.items()}


def _pattern(path: str) -> re.Pattern:
    return re.compile(re.escape(path).replace(r"\{i\}", r"(\d+)") + r"(?=\.|$)")


def _by_table(key: str, rules: Mapping[re.Pattern, str]) -> str | None:
    for pattern, ours in rules.items():
        match = pattern.match(key)
        if match:
            return match.expand(ours) + key[match.end() :]
    return None


def _if_ours(key: str, patterns: Iterable[re.Pattern]) -> str | None:
    return key if any(pattern.match(key) for pattern in patterns) else None


def _inverse(table: Mapping[str, str]) -> dict[str, str]:
    return {ours: theirs for theirs, ours in table.items()}


_TRANSFORMER_RULES = _compile(TRANSFORMER)
_TRANSFORMER_BACK = _compile(_inverse(TRANSFORMER))
_TRANSFORMER_OURS = tuple(map(_pattern, TRANSFORMER.values()))
_TEXT_RULES = _compile(TEXT, TEXT_LLAMA_CPP)
_TEXT_BACK = _compile(_inverse(TEXT))
_TEXT_OURS = tuple(map(_pattern, TEXT.values()))
_CLIP_RULES = _compile(CLIP, CLIP_OPEN_CLIP)
_CLIP_BACK = _compile(_inverse(CLIP))
_CLIP_OURS = (
    *map(_pattern, CLIP.values()),
    *(_pattern(f"encoder.layers.{{i}}.self_attn.{name}_proj") for name in "qkv"),
)
_VAE_RULES = _compile(VAE_TOP)
