from itertools import pairwise

import pytest
import torch
from diffusers import AutoencoderKLWan
from hypothesis import given, settings
from hypothesis import strategies as st
from multitalk_pack.pipeline.errors import ConfigError
from multitalk_pack.pipeline.models.vae.convolutions import OneDnnConvolutions
from multitalk_pack.pipeline.models.vae.tiling import Tiling, blend, split_tiles
from multitalk_pack.pipeline.models.vae.video_vae import LATENT_MEAN, LATENT_STD, StreamingEncoder, VideoVae
from multitalk_pack.pipeline.weights.key_maps import rename_vae
from support.golden import Golden

GOLDEN = Golden("wan_vae")


def diffusers_model():
    config = GOLDEN.config
    model = AutoencoderKLWan(
        base_dim=config["dim"],
        z_dim=config["z_dim"],
        dim_mult=config["dim_mult"],
        num_res_blocks=config["num_res_blocks"],
        attn_scales=config["attn_scales"],
        temperal_downsample=config["temporal_downsample"],
    )
    model.load_state_dict({rename_vae(key): tensor for key, tensor in GOLDEN.state().items()})
    return model.eval()


@pytest.fixture(scope="module")
def vae():
    return VideoVae(diffusers_model())


def video(num_frames, height=16, width=16, seed=0):
    return torch.rand(3, num_frames, height, width, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_the_constants_are_the_published_ones():
    assert torch.equal(torch.tensor(LATENT_MEAN), GOLDEN["const.mean"])
    assert torch.equal(torch.tensor(LATENT_STD), GOLDEN["const.std"])


@pytest.mark.parametrize("case", GOLDEN.cases)
def test_frames_and_latents_are_the_published_ones(vae, case):
    GOLDEN.assert_close(vae.encode(GOLDEN[f"in.{case}.video"]), f"out.{case}.latents")
    GOLDEN.assert_close(vae.decode_all(GOLDEN[f"out.{case}.latents"]), f"out.{case}.decoded")


def test_coding_is_bit_for_bit_that_of_diffusers_by_the_same_convolutions(vae):
    frames, model = video(13), diffusers_model()
    latents = vae.encode(frames)
    mean, std = (torch.tensor(values)[:, None, None, None] for values in (LATENT_MEAN, LATENT_STD))
    with torch.no_grad(), OneDnnConvolutions():
        assert torch.equal(latents, (model.encode(frames[None]).latent_dist.mode()[0] - mean) / std)
        assert torch.equal(vae.decode_all(latents), model.decode((latents * std + mean)[None]).sample[0])


def with_grey(frames, num_frames):
    return torch.cat((frames, frames.new_zeros(3, num_frames - frames.shape[1], *frames.shape[2:])), dim=1)


@pytest.mark.parametrize("num_source", [1, 3, 9, 25, 81])
def test_stopping_where_a_layer_repeats_itself_changes_no_bit(vae, num_source):
    frames = video(num_source)
    assert torch.equal(vae.encode_padded(frames, 81), vae.encode(with_grey(frames, 81)))


@settings(max_examples=6, deadline=None)
@given(st.integers(1, 14), st.integers(0, 12))
def test_any_number_of_frames_may_be_followed_by_grey(vae, num_source, more):
    num_frames = -(-(num_source - 1) // 4) * 4 + 1 + 4 * more
    frames = video(num_source, 8, 8, seed=num_source)
    assert torch.equal(vae.encode_padded(frames, num_frames), vae.encode(with_grey(frames, num_frames)))


@pytest.mark.parametrize(
    ("num_source", "first_repeats"),
    [
        (1, [3, 4, 5, 5, 6, 7, 7, 9, 11, 12, 16, 20]),
        (25, [9, 10, 11, 11, 12, 13, 13, 15, 17, 18, 21, 21]),  # 21: never
    ],
)
def test_layers_become_steady_one_after_the_other(vae, num_source, first_repeats):
    """The first chunk of 21 that a layer need not be run for: the first convolution, then the down blocks."""
    layers = [vae.model.encoder.conv_in, *vae.model.encoder.down_blocks]
    calls = [0] * len(layers)

    def count(index):
        return lambda *_: calls.__setitem__(index, calls[index] + 1)

    hooks = [layer.register_forward_hook(count(index)) for index, layer in enumerate(layers)]
    vae.encode_padded(video(num_source), 81)
    for hook in hooks:
        hook.remove()
    assert calls == first_repeats


def test_a_layer_whose_cache_goes_on_changing_is_run_every_time():
    def count(chunk, cache):
        cache[0] = cache[0] + 1
        return chunk + cache[0]

    encoder = StreamingEncoder([(count, [torch.zeros(1)])])
    assert [encoder(torch.zeros(1)).item(), *(encoder.repeat().item() for _ in range(3))] == [1, 2, 3, 4]


def test_frames_come_as_they_are_decoded(vae):
    latents = torch.randn(16, 5, 2, 2, generator=torch.Generator().manual_seed(0))
    calls = []
    hook = vae.model.decoder.register_forward_hook(lambda *_: calls.append(1))
    shapes = []
    for number, frames in enumerate(vae.decode(latents), start=1):
        assert len(calls) == number  # one latent frame for each chunk, not more
        assert frames.abs().max() <= 1
        shapes.append(tuple(frames.shape))
    hook.remove()
    assert shapes == [(3, 1, 16, 16)] + [(3, 4, 16, 16)] * 4


def test_a_decode_may_be_left_early_and_two_may_run_side_by_side(vae):
    latents = torch.randn(2, 16, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    next(vae.decode(latents[0]))
    both = list(zip(vae.decode(latents[0]), vae.decode(latents[1]), strict=True))
    for index in range(2):
        assert torch.equal(torch.cat([pair[index] for pair in both], 1), vae.decode_all(latents[index]))


def test_half_precision_gives_float32(vae):
    half = VideoVae(AutoencoderKLWan(base_dim=3, decoder_base_dim=3).to(torch.bfloat16).eval())
    latents = half.encode(video(5))
    assert latents.dtype == torch.float32 and half.decode_all(latents).dtype == torch.float32


def test_tiles_cover_everything_and_share_enough():
    tiling = Tiling(size=64, overlap=16)
    for height, width in [(8, 8), (9, 30), (20, 13), (40, 8)]:
        tiles = split_tiles(height, width, tiling)
        coverage = torch.zeros(height, width)
        for tile in tiles:
            tile.cut(coverage).add_(1)
        assert coverage.min() >= 1
        lefts = sorted({tile.left for tile in tiles})
        assert all(right - left <= 6 for left, right in pairwise(lefts))


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from([1, 8]))
def test_tiles_that_agree_give_the_picture_back(height, width, scale):
    picture = torch.rand(2, height * scale, width * scale)
    tiling = Tiling(size=64, overlap=24)
    tiles = split_tiles(height, width, tiling)
    assert torch.allclose(blend([tile.cut(picture, scale) for tile in tiles], tiles, tiling, scale), picture)


def test_where_tiles_differ_one_fades_into_the_other():
    tiling = Tiling(size=64, overlap=32)
    tiles = split_tiles(8, 12, tiling)
    row = blend([torch.zeros(8, 8), torch.ones(8, 8)], tiles, tiling)[0]
    assert torch.allclose(row, torch.tensor([0] * 4 + [0.125, 0.375, 0.625, 0.875] + [1] * 4))


def test_tiling_is_near_the_whole_and_nearer_with_more_overlap(vae):
    frames = torch.nn.functional.interpolate(video(1, 8, 12), (64, 112), mode="bilinear")
    latents = vae.encode(frames)
    errors = []
    for overlap in (16, 32):
        tiled = VideoVae(vae.model, Tiling(size=64, overlap=overlap))
        tiled_latents, tiled_frames = tiled.encode(frames), tiled.decode_all(latents)
        assert tiled_latents.shape == latents.shape
        errors.append([relative_error(tiled_latents, latents), relative_error(tiled_frames, vae.decode_all(latents))])
    assert max(errors[1]) < 0.15, errors
    assert errors[1][0] < errors[0][0] and errors[1][1] < errors[0][1], errors


def relative_error(x, reference):
    return ((x - reference).square().mean().sqrt() / reference.std()).item()


def test_tiles_as_large_as_the_frame_change_no_bit(vae):
    tiled = VideoVae(vae.model, Tiling(size=64, overlap=16))
    latents = vae.encode(video(5, 32, 48))
    assert torch.equal(tiled.encode(video(5, 32, 48)), latents)
    assert torch.equal(tiled.decode_all(latents), vae.decode_all(latents))


@pytest.mark.parametrize("sides", [(100, 16), (64, 12), (64, 40), (64, 0)])
def test_tiles_that_do_not_fit_latents_are_refused(sides):
    with pytest.raises(ConfigError, match="multiples of 8"):
        Tiling(*sides)


@pytest.mark.parametrize(
    ("frames", "num_frames", "message"),
    [
        (torch.zeros(3, 2, 16, 16), 2, "4n\\+1, got 2"),
        (torch.zeros(3, 9, 16, 16), 5, "1 to 5 frames"),
        (torch.zeros(4, 1, 16, 16), 5, "must be 3 f h w"),
        (torch.zeros(3, 1, 20, 16), 5, "multiples of 8"),
    ],
)
def test_frames_that_do_not_fit_are_refused(vae, frames, num_frames, message):
    with pytest.raises(ConfigError, match=message):
        vae.encode_padded(frames, num_frames)


def test_latents_of_another_vae_are_refused(vae):
    with pytest.raises(ConfigError, match="Latents must be 16 t h w"):
        vae.decode(torch.zeros(48, 1, 2, 2))
