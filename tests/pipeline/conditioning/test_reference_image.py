import logging
import math

import pytest
import torch
from multitalk_pack.pipeline.conditioning.reference_image import (
    BUCKETS,
    bucket,
    check_size,
    fit,
    fit_frames,
    fit_mask,
)
from multitalk_pack.pipeline.config import Resolution
from multitalk_pack.pipeline.errors import ConfigError, ImageError
from multitalk_pack.pipeline.media.pixels import from_uint8
from support.golden import Golden
from torch.nn.functional import interpolate

GOLDEN = Golden("resize")
CLASSES = {Resolution.P480: "480", Resolution.P720: "720"}
NUM_PICTURES = sum(name.startswith("in.image") for name in GOLDEN.tensors)


@pytest.mark.parametrize(("resolution", "name"), CLASSES.items())
def test_the_tables_are_the_published_ones(resolution, name):
    table = BUCKETS[resolution]
    assert [round(100 * ratio) for ratio in table] == GOLDEN[f"table_{name}.ratio_hundredths"].tolist()
    assert list(table.values()) == [tuple(size) for size in GOLDEN[f"table_{name}.target_hw"].tolist()]


@pytest.mark.parametrize(("resolution", "name"), CLASSES.items())
def test_each_size_finds_its_bucket(resolution, name):
    sizes = [bucket(*size, BUCKETS[resolution]) for size in GOLDEN["in.sizes_hw"].tolist()]
    assert sizes == [tuple(size) for size in GOLDEN[f"out.target_hw_{name}"].tolist()]


@pytest.mark.parametrize("number", range(NUM_PICTURES))
def test_pictures_and_masks_are_fitted_as_published(number):
    want = GOLDEN[f"out.image{number}"]
    fitted = fit(GOLDEN[f"in.image{number}"], tuple(want.shape[1:]))
    levels = ((fitted + 1) * 127.5).round()
    assert (levels - want).abs().max() <= 1  # one grey level, for Pillow's versions
    mask = GOLDEN[f"in.mask{number}"]
    GOLDEN.assert_close(fit_mask(mask, tuple(want.shape[1:])), f"out.mask{number}")


def test_a_fitted_picture_is_in_minus_one_to_one():
    want = GOLDEN["out.normalised0"]
    GOLDEN.assert_close(fit(GOLDEN["in.image0"], tuple(want.shape[1:])), "out.normalised0")


def test_custom_sizes_are_whole_tokens():
    assert check_size(480, 832) == (480, 832)
    with pytest.raises(ConfigError, match=r"height must be a multiple of 16, got 479. The nearest is 480"):
        check_size(479, 832)


def test_a_huge_picture_is_fitted_and_the_loss_is_told(caplog):
    with caplog.at_level(logging.INFO):
        fitted = fit(torch.zeros(300, 12000, 3, dtype=torch.uint8), bucket(300, 12000, BUCKETS[Resolution.P480]))
    assert fitted.shape == (3, 320, 1216)
    assert "cuts off 90% of the image" in caplog.text
    assert fit(torch.zeros(3000, 12000, 3, dtype=torch.uint8), (320, 1216)).shape == (3, 320, 1216)


def test_a_picture_too_long_to_be_scaled_is_refused():
    with pytest.raises(ImageError, match=r"The image is 100000x16, and 1216x320 would be cut from 2000000x320"):
        fit(torch.zeros(16, 100_000, 3, dtype=torch.uint8), (320, 1216))


def test_the_frames_of_a_video_are_fitted_one_by_one_in_bytes():
    frames = torch.randint(0, 256, (5, 40, 60, 3), dtype=torch.uint8)
    fitted = fit_frames(iter(frames), 5, (32, 64))
    assert fitted.shape == (5, 32, 64, 3)
    for bytes_, frame in zip(fitted, frames, strict=True):
        assert torch.equal(from_uint8(bytes_).permute(2, 0, 1), fit(frame, (32, 64)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool, torch.uint8])
@pytest.mark.parametrize(("source", "size"), [((90, 121), (64, 48)), ((17, 400), (96, 96)), ((333, 517), (640, 1024))])
def test_masks_are_fitted_as_pytorchs_nearest_interpolation_does(source, size, dtype):
    mask = (torch.rand(3, *source) > 0.5).to(dtype)
    scale = max(size[0] / source[0], size[1] / source[1])
    rows, columns = math.ceil(scale * source[0]), math.ceil(scale * source[1])
    top, left = round((rows - size[0]) / 2), round((columns - size[1]) / 2)
    scaled = interpolate(mask[None].float(), (rows, columns), mode="nearest")[0].to(dtype)
    fitted = fit_mask(mask, size)
    assert fitted.dtype is dtype
    assert torch.equal(fitted, scaled[:, top : top + size[0], left : left + size[1]])
