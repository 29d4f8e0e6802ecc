"""Properties of the transformer with any weights."""

import pytest
import torch
from multitalk_pack.pipeline.errors import ConfigError
from multitalk_pack.pipeline.models.transformer import attention, audio_attention
from multitalk_pack.pipeline.models.transformer.attention import SelfAttention, TextTokens
from multitalk_pack.pipeline.models.transformer.audio_projection import AudioProjection
from multitalk_pack.pipeline.models.transformer.embedding import sinusoid
from multitalk_pack.pipeline.models.transformer.feed_forward import gelu_tanh
from multitalk_pack.pipeline.models.transformer.model import MultiTalkTransformer
from multitalk_pack.pipeline.models.transformer.rope import grid_rotation
from multitalk_pack.pipeline.shapes import LatentSize
from support.transformer import SIZE, latents, pass_inputs, prompt, tiny, voices, window_inputs
from torch.nn.functional import gelu, scaled_dot_product_attention


def count_calls(monkeypatch, owner: object, name: str) -> list:
    """Every call of `owner.name` from now on leaves its arguments in this list."""
    calls, original = [], getattr(owner, name)

    def call(*args, **kwargs):
        calls.append(args)
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, call)
    return calls


def test_the_published_size_has_the_published_weights():
    with torch.device("meta"):
        weights = MultiTalkTransformer().state_dict()
    adapter = [name for name in weights if "audio" in name or "norm_x" in name]
    assert (len(weights), len(adapter)) == (1633, 330)
    assert sum(weight.numel() for weight in weights.values()) == 18_882_046_784
    assert sum(weights[name].numel() for name in adapter) == 2_487_168_000


@pytest.mark.parametrize("num_speakers", [1, 2])
def test_constants_are_computed_once_and_give_the_same_again(monkeypatch, num_speakers):
    transformer, x = tiny(), latents()
    calls = count_calls(monkeypatch, AudioProjection, "forward")
    inputs = pass_inputs(transformer, num_speakers)
    first = transformer(x, 700.0, inputs)
    transformer(latents(seed=9), 300.0, inputs)
    again = transformer(x, 700.0, inputs)
    assert len(calls) == 1
    assert torch.equal(first, again)
    assert torch.equal(first, transformer(x, 700.0, pass_inputs(transformer, num_speakers)))


def test_windows_of_different_sizes_do_not_disturb_each_other():
    transformer, other = tiny(), LatentSize(2, 6, 4)
    one, two = pass_inputs(transformer, 2), pass_inputs(transformer, 2, other)
    first = transformer(latents(), 500.0, one)
    transformer(latents(other), 500.0, two)
    assert torch.equal(transformer(latents(), 500.0, one), first)
    alone = transformer(latents(other), 500.0, pass_inputs(transformer, 2, other))
    assert torch.equal(transformer(latents(other), 500.0, two), alone)


def test_passes_with_the_same_prompt_and_voice_share_what_is_computed_of_them(monkeypatch):
    transformer, audio = tiny(), voices(tiny())
    shared, calls = window_inputs(transformer), count_calls(monkeypatch, AudioProjection, "forward")
    for seed in (1, 2):
        transformer(latents(), 500.0, transformer.prepare_pass(shared, prompt(transformer, seed=seed), audio))
    assert len(calls) == 1


def test_one_voice_needs_no_reference_map(monkeypatch):
    transformer, calls = tiny(), count_calls(monkeypatch, attention, "reference_attention")
    silence = transformer.zero_audio(9)
    pass_of_two = pass_inputs(transformer, 2)
    transformer(latents(), 500.0, transformer.prepare_pass(pass_of_two.window, prompt(transformer), silence))
    assert not calls
    transformer(latents(), 500.0, pass_of_two)
    assert len(calls) == len(transformer.blocks)


@pytest.mark.parametrize("frame", range(9))
def test_a_feature_reaches_only_its_own_latent_frames(frame):
    """With the blocks' self-attention silenced, nothing else can carry sound from one latent frame to another."""
    transformer = tiny()
    for block in transformer.blocks:
        torch.nn.init.zeros_(block.attn1.to_out[0].weight)
    features = torch.randn(13, *transformer.config.audio_features)  # of video frames -2..10, for windows of -2..+2
    changed = features.clone()
    changed[frame + 2] += 1

    def velocity(features: torch.Tensor) -> torch.Tensor:
        audio = features.unfold(0, 5, 1).movedim(-1, 1)[None]  # p f window layers channels
        return transformer(
            latents(), 500.0, transformer.prepare_pass(window_inputs(transformer), prompt(transformer), audio)
        )

    is_moved = (velocity(changed) - velocity(features)).abs().amax(dim=(0, 2, 3)) > 1e-6
    is_own = [0 <= frame <= 2] + [4 * k - 5 <= frame <= 4 * k + 2 for k in (1, 2)]
    assert is_moved.tolist() == is_own


def test_swapping_the_persons_changes_the_result():
    transformer, audio = tiny(), voices(tiny(), 2)
    shared = window_inputs(transformer)
    one_way, other_way = (
        transformer(latents(), 500.0, transformer.prepare_pass(shared, prompt(transformer), tracks))
        for tracks in (audio, audio.flip(0))
    )
    assert (one_way - other_way).abs().max() > 1e-3


@pytest.mark.parametrize("num_speakers", [1, 2])
def test_blocks_can_be_run_in_parts(num_speakers):
    transformer, pass_ = tiny(num_layers=3), pass_inputs(tiny(), num_speakers)
    tokens, time = transformer.embed(latents(), 500.0, pass_)
    tokens = transformer.run_blocks(tokens, time, pass_, slice(0, 1))
    tokens = transformer.run_blocks(tokens, time, pass_, slice(1, None))
    velocity = transformer.head(tokens, time, pass_)
    assert torch.equal(velocity, transformer(latents(), 500.0, pass_inputs(transformer, num_speakers)))
    assert torch.equal(transformer.time_projection(500.0), time.projection)


def test_the_condition_is_the_other_channels_of_the_patch_embedding():
    transformer, pass_, x = tiny(), pass_inputs(tiny()), latents()
    tokens, _ = transformer.embed(x, 500.0, pass_)
    whole = torch.cat((x, pass_.window.condition.value))
    convolved = torch.nn.functional.conv3d(
        whole[None], transformer.patch_embedding.weight, transformer.patch_embedding.bias, stride=(1, 2, 2)
    )
    torch.testing.assert_close(tokens, convolved[0].flatten(1).T)


@pytest.mark.parametrize(("dtype", "lengths"), [(torch.float32, [5]), (torch.bfloat16, [8, 5])])
def test_a_chosen_kernel_serves_all_attentions_without_weights(dtype, lengths):
    calls = []

    def attend(query, key, value):
        calls.append(key.shape[2])
        return scaled_dot_product_attention(query, key, value)

    transformer, plain = tiny().to(dtype), tiny().to(dtype)
    transformer.set_attention(attend)
    velocity = transformer(latents(), 500.0, pass_inputs(transformer, 2))
    assert calls == [SIZE.num_tokens, *lengths] * 2  # the video, the prompt, the picture; in two blocks
    assert torch.equal(velocity, plain(latents(), 500.0, pass_inputs(plain, 2)))


@pytest.mark.parametrize("num_tokens", [1, 5, 7, 8])
def test_padding_as_one_heavy_key_is_the_plain_attention(num_tokens):
    attention, x = tiny().blocks[0].attn2, torch.randn(20, 64)
    image, tokens = attention.image_kv(torch.randn(5, 64)), torch.randn(num_tokens + 1, 64)
    every = torch.cat((tokens[:-1], tokens[-1:].expand(8 - num_tokens, -1)))
    merged = attention(x, attention.text_kv(TextTokens(tokens, 8 - num_tokens)), image)
    plain = attention(x, attention.text_kv(TextTokens(torch.cat((every, every[:1])), 0)), image)
    torch.testing.assert_close(merged, plain, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("cached_numbers", [0, audio_attention.MAX_CACHED_NUMBERS])
def test_the_folded_audio_attention_is_the_plain_one(cached_numbers, monkeypatch):
    monkeypatch.setattr(audio_attention, "MAX_CACHED_NUMBERS", cached_numbers)
    layer = tiny().blocks[0].audio_cross_attn
    x, voice = torch.randn(3 * 40, 64), layer.audio_kv(torch.randn(1, 3, 4, 24))
    results = [layer(x, voice) for _ in range(2)]
    layer.proj = torch.nn.Sequential(layer.proj)  # no plain layer any more
    for result in results:
        torch.testing.assert_close(result, layer(x, voice))


def test_the_gelu_is_as_near_to_the_exact_one_as_that_of_torch():
    x = torch.cat((4 * torch.randn(10_000), torch.tensor([0.0, 30, -30, 1e4, -1e4])))
    exact = gelu(x.double(), approximate="tanh")
    ours, other = ((y - exact).norm() / exact.norm() for y in (gelu_tanh(x), gelu(x, approximate="tanh")))
    assert 0 < ours <= 2 * other < 1e-6


def test_the_gelu_has_a_gradient():
    with torch.enable_grad():
        x = torch.randn(10, requires_grad=True)
        (gradient,) = torch.autograd.grad(gelu_tanh(x).sum(), x)
        (want,) = torch.autograd.grad(gelu(x, approximate="tanh").sum(), x)
    torch.testing.assert_close(gradient, want)


@pytest.mark.parametrize("num_speakers", [1, 2])
def test_bfloat16_is_nearer_to_float32_than_rounding_after_every_layer(num_speakers):
    distances = []
    for seed in range(3):
        transformer, exact = tiny(seed).to(torch.bfloat16), tiny(seed)
        exact.load_state_dict(transformer.state_dict())
        want = exact(latents(), 500.0, pass_inputs(exact, num_speakers))
        ours = transformer(latents(), 500.0, pass_inputs(transformer, num_speakers))
        with torch.autocast("cpu", torch.bfloat16):
            plain = exact(latents(), 500.0, pass_inputs(exact, num_speakers))
        assert ours.dtype == torch.float32
        distances.append([(velocity - want).norm() / want.norm() for velocity in (ours, plain)])
    ours, plain = torch.tensor(distances).mean(dim=0)
    assert 0 < ours <= plain


def test_the_sinusoids_of_the_timestep_are_those_of_float64():
    for timestep in (0.0, 1000.0, 712.53125, torch.tensor([86.25])):
        frequencies = 10_000.0 ** -(torch.arange(128, dtype=torch.float64) / 128)
        angles = float(timestep) * frequencies
        torch.testing.assert_close(sinusoid(timestep, 256)[0], torch.cat((angles.cos(), angles.sin())).float())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"condition": torch.zeros(16, 3, 4, 6)}, "condition must be of shape 20 x 3 x 4 x 6"),
        ({"image_embeds": torch.zeros(5, 7)}, "image_embeds must be of shape any x 12"),
        ({"speaker_masks": torch.zeros(3, 32, 48)}, "speaker_masks must be of shape any x 4 x 6"),
        ({"size": LatentSize(3, 5, 6), "condition": torch.zeros(20, 3, 5, 6)}, "Use even sides"),
        ({"prompt_embeds": torch.zeros(9, 20)}, "at most 8"),
        ({"audio": torch.zeros(1, 10, 5, 2, 6)}, "audio must be of shape any x 9 x 5 x 2 x 6"),
        ({"audio": torch.zeros(2, 9, 5, 2, 6)}, "2 voices need 3 speaker_masks"),
    ],
)
def test_inputs_that_do_not_fit_are_refused_before_anything_runs(change, message):
    transformer = tiny()
    arguments = {
        "size": SIZE,
        "condition": torch.zeros(20, 3, 4, 6),
        "image_embeds": torch.zeros(5, 12),
        "speaker_masks": None,
        "prompt_embeds": torch.zeros(2, 20),
        "audio": torch.zeros(1, 9, 5, 2, 6),
    } | change
    with pytest.raises(ConfigError, match=message):
        shared = transformer.prepare_window(*(arguments.pop(name) for name in list(arguments)[:4]))
        transformer.prepare_pass(shared, arguments["prompt_embeds"], arguments["audio"])


def test_attention_rotates_its_tokens_by_their_position_alone():
    """Moving the whole picture by one column leaves every score as it was: rope is relative."""
    layer = SelfAttention(dim=32, num_heads=2, eps=1e-6)
    x, wide = torch.randn(2 * 3 * 4, 32), grid_rotation(2, 3, 5, 16).unflatten(0, (2, 3, 5))
    left, right = wide[:, :, :4].flatten(0, 2), wide[:, :, 1:].flatten(0, 2)
    torch.testing.assert_close(layer(x, left)[0], layer(x, right)[0])
