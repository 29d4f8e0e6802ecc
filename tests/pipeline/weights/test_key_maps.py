import pytest
import torch
from multitalk_pack.benchmarks.tiny_weights import WeightSizes, tiny_image_encoder, tiny_vae
from multitalk_pack.pipeline.models.transformer.model import MultiTalkTransformer
from multitalk_pack.pipeline.weights.key_maps import (
    WRAPPERS,
    native_clip_state,
    native_transformer_key,
    rename_clip,
    rename_text,
    rename_transformer,
    rename_vae,
    rename_wav2vec2,
)
from support.tiny_models import adapter_state, base_state


@pytest.mark.parametrize("wrapper", ["", *WRAPPERS])
def test_transformer_names_go_both_ways(wrapper):
    native = base_state() | adapter_state()
    ours = {rename_transformer(wrapper + key): key for key in native}
    assert None not in ours and len(ours) == len(native)
    assert all(native_transformer_key(key) == theirs and rename_transformer(key) == key for key, theirs in ours.items())


def test_the_full_model_has_1633_tensors_under_known_names():
    with torch.device("meta"):
        model = MultiTalkTransformer()
    native = {native_transformer_key(key) for key in model.state_dict()}
    audio = [key for key in native if "audio" in key or "norm_x" in key]
    assert (len(native), len(audio)) == (1633, 330)


def test_rules_are_anchored():
    assert rename_transformer("blocks.3.audio_cross_attn.proj.weight") == "blocks.3.audio_cross_attn.proj.weight"
    assert rename_transformer("multitalk_audio_proj.proj1.bias") == "audio_proj.proj1.bias"
    assert rename_transformer("blocks.3.cross_attn.k_img.weight") == "blocks.3.attn2.add_k_proj.weight"
    assert rename_transformer("blocks.3.self_attn.q.scale_weight") == "blocks.3.attn1.to_q.scale_weight"
    assert rename_transformer("blocks.3.cross_attn.q_other.weight") is None
    assert rename_transformer("scaled_fp8") is None


def test_heads_and_decoders_are_left_out():
    assert rename_wav2vec2("wav2vec2.encoder.layer_norm.bias") == "encoder.layer_norm.bias"
    assert rename_wav2vec2("quantizer.codevectors") is None and rename_wav2vec2("lm_head.weight") is None
    assert rename_text("decoder.block.0.layer.0.SelfAttention.q.weight") is None
    assert rename_text("spiece_model") is None


def test_vae_blocks_are_counted_as_diffusers_counts_them():
    assert rename_vae("decoder.upsamples.3.time_conv.weight") == "decoder.up_blocks.0.upsamplers.0.time_conv.weight"
    assert rename_vae("decoder.upsamples.4.shortcut.bias") == "decoder.up_blocks.1.resnets.0.conv_shortcut.bias"
    assert rename_vae("encoder.downsamples.10.residual.6.weight") == "encoder.down_blocks.10.conv2.weight"
    native = tiny_vae(WeightSizes(), torch.Generator().manual_seed(0))
    assert len({rename_vae(key) for key in native}) == len(native) == 194


def test_fused_attention_is_split_and_joined():
    native = tiny_image_encoder(WeightSizes(), torch.Generator().manual_seed(0))
    back = native_clip_state(rename_clip(native))
    assert back.keys() == native.keys() and all(torch.equal(back[key], native[key]) for key in native)
