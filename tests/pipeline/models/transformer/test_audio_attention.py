"""Attention to speech: of one voice, of several, and each latent frame's own."""

import pytest
import torch
from multitalk_pack.pipeline.models.transformer.audio_attention import AudioCrossAttention
from multitalk_pack.pipeline.models.transformer.rope import rotate, rotation
from multitalk_pack.pipeline.models.transformer.speakers import (
    range_starts,
    reference_attention,
    speaker_positions,
    voice_positions,
)
from support.golden import Golden


def from_golden(golden: Golden) -> AudioCrossAttention:
    config = golden.config
    attention = AudioCrossAttention(config["dim"], config["encoder_hidden_states_dim"], config["num_heads"])
    attention.load_state_dict(golden.state())
    return attention


def test_the_attention_to_one_voice_is_the_published_one():
    golden = Golden("audio_cross_attention_single")
    attention = from_golden(golden)
    audio_kv = attention.audio_kv(golden["in.audio_tokens"][None])
    golden.assert_close(attention(golden["in.x"][0], audio_kv)[None], "out.x")


@pytest.mark.parametrize("case", ["map_from_qk", "map_given"])
def test_the_attention_to_two_voices_is_the_published_one(case):
    golden = Golden("audio_cross_attention_multi")
    attention = from_golden(golden)
    if case == "map_given":
        reference_map = golden[f"in.{case}.ref_attn_map"]
    else:
        query, key = (golden[f"in.{case}.{name}"].transpose(1, 2) for name in "qk")
        reference_map = reference_attention(query, key, golden[f"in.{case}.token_masks"])
        golden.assert_close(reference_map, f"mid.{case}.ref_attn_map")
    golden.assert_close(speaker_positions(reference_map), f"mid.{case}.query_positions")

    num_tokens = golden.cases[case]["tokens_per_person"]
    tokens = golden[f"in.{case}.audio_tokens"][0].unflatten(1, (2, num_tokens)).transpose(0, 1)  # p t n d
    key_positions = voice_positions(2).repeat_interleave(num_tokens).repeat(tokens.shape[1])
    golden.assert_close(key_positions, f"mid.{case}.key_positions")
    attn_out = attention(golden[f"in.{case}.x"][0], attention.audio_kv(tokens), reference_map)
    golden.assert_close(attn_out[None], f"out.{case}.x")


def test_positions_rotate_channels_as_published():
    golden = Golden("audio_cross_attention_multi")
    x = golden["in.rope1d.x"]
    rotated = rotate(x.transpose(1, 2), rotation(golden["in.rope1d.positions"].float(), x.shape[-1])[:, None])
    golden.assert_close(rotated.transpose(1, 2), "out.rope1d.x")


def test_a_latent_frame_attends_only_to_its_own_audio():
    attention = AudioCrossAttention(dim=16, audio_dim=12, num_heads=2)
    with torch.enable_grad():
        audio_tokens = torch.randn(1, 3, 4, 12, requires_grad=True)  # one person, three latent frames
        attn_out = attention(torch.randn(3 * 5, 16), attention.audio_kv(audio_tokens))
        attn_out[5:10].sum().backward()  # the tokens of latent frame 1
    assert (audio_tokens.grad.abs().sum(dim=(0, 2, 3)) > 0).tolist() == [False, True, False]


def test_the_map_is_the_formula_written_out():
    heads, n, s, k = 3, 12, 4, 8
    query, key = torch.randn(2, 1, heads, n, k).unbind(0)
    masks = torch.tensor([[1.0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    weights = (query[0] @ key[0, :, :s].transpose(1, 2) / k**0.5).softmax(dim=-1)  # heads n s
    formula = torch.stack([(weights * mask).sum(-1).mean(0) / mask.sum() for mask in masks])
    torch.testing.assert_close(reference_attention(query, key, masks), formula)


def test_a_class_without_a_token_gets_no_attention():
    masks = torch.tensor([[1.0, 1], [0, 0], [0, 0]])
    reference_map = reference_attention(torch.randn(1, 2, 6, 8), torch.randn(1, 2, 6, 8), masks)
    assert reference_map.isfinite().all() and (reference_map[1:] == 0).all()
    positions = speaker_positions(reference_map)
    assert positions.isfinite().all() and (positions <= 4).all()


@pytest.mark.parametrize("num_speakers", range(1, 7))
def test_the_background_is_far_from_every_voice_and_voices_from_each_other(num_speakers):
    voices = voice_positions(num_speakers)
    assert voices[:2].tolist() == [2, 22][:num_speakers]  # as trained
    reference_map = torch.zeros(num_speakers + 1, 1)
    reference_map[-1] = 1
    (background,) = speaker_positions(reference_map)
    assert background == 12
    assert (voices - background).abs().min() >= 10
    assert num_speakers == 1 or voices.diff().min() >= 20


@pytest.mark.parametrize("num_speakers", [2, 3, 5])
def test_persons_keep_to_their_ranges(num_speakers):
    reference_map = torch.rand(num_speakers + 1, 200)
    positions, winner = speaker_positions(reference_map), reference_map.argmax(dim=0)
    for person, start in enumerate(range_starts(num_speakers)):
        own = positions[winner == person]
        assert ((own >= start) & (own <= start + 4)).all()
    assert (positions[winner == num_speakers] == 12).all()
