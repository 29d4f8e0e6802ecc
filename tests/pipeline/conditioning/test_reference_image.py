import logging

import numpy as np
import pytest
import torch
from multitalk_pack.pipeline.conditioning.reference_image import (
    BUCKETS,
    bucket,
    check_size,
    fit,
    fit_mask,
)
from multitalk_pack.pipeline.config import Resolution
from multitalk_pack.pipeline.errors import ConfigError, ImageError
from multitalk_pack.pipeline.media.picture import read_image, to_rgb
from PIL import Image
from support.golden import Golden

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


def test_grey_becomes_rgb():
    grey = torch.randint(0, 256, (20, 30), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(to_rgb(grey), grey[..., None].expand(-1, -1, 3))
    assert torch.equal(to_rgb(grey[..., None]), to_rgb(grey))


def test_floats_are_the_levels_they_came_from():
    levels = torch.arange(256, dtype=torch.uint8).reshape(16, 16, 1).expand(-1, -1, 3)
    assert torch.equal(to_rgb(levels.float() / 255), levels)


def test_transparent_parts_become_white_and_the_log_says_so(caplog):
    image = torch.tensor([200, 100, 0, 255], dtype=torch.uint8).repeat(16, 16, 1)
    with caplog.at_level(logging.INFO):
        assert to_rgb(image)[0, 0].tolist() == [200, 100, 0]
    assert not caplog.records
    image[0, 0, 3], image[0, 1, 3] = 0, 51
    with caplog.at_level(logging.INFO):
        assert to_rgb(image)[0, :2].tolist() == [[255, 255, 255], [244, 224, 204]]
    assert "put on white" in caplog.text


def test_of_a_batch_the_first_is_taken_and_the_log_says_so(caplog):
    batch = torch.stack([torch.full((16, 16, 3), level, dtype=torch.uint8) for level in (7, 9)])
    with caplog.at_level(logging.INFO):
        assert (to_rgb(batch) == 7).all()
    assert "batch of 2" in caplog.text


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.zeros(1, 1, 3), r"1x1 pixels. Both sides must be at least 16"),
        (torch.zeros(0, 5, 3), r"5x0 pixels"),
        (torch.zeros(0, 16, 16, 3), r"got the shape \(0, 16, 16, 3\)"),
        (torch.zeros(3, 16, 16), r"got the shape \(3, 16, 16\)"),
        (torch.zeros(16, 16, 3, dtype=torch.int64), r"uint8 or float, got torch.int64"),
        (torch.full((16, 16, 3), 200.0), r"must be in 0..1, got 200..200"),
        (torch.full((16, 16, 3), torch.nan), r"NaN or infinity"),
    ],
)
def test_what_is_no_picture_is_refused(image, message):
    with pytest.raises(ImageError, match=message):
        to_rgb(image)


def test_a_photo_is_turned_upright(tmp_path):
    pixels = np.zeros((20, 40, 3), np.uint8)
    pixels[:, :20, 0] = 255  # the left half is red
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held so that the left edge is the top
    Image.fromarray(pixels).save(tmp_path / "photo.png", exif=exif)
    image = read_image(tmp_path / "photo.png")
    assert image.shape == (40, 20, 3) and image.dtype == torch.uint8
    assert (image[:20, :, 0] == 255).all() and (image[20:] == 0).all()


@pytest.mark.parametrize(
    ("mode", "level", "want"),
    [
        ("L", 100, [100, 100, 100]),
        ("LA", (100, 0), [255, 255, 255]),
        ("RGBA", (10, 20, 30, 255), [10, 20, 30]),
        ("I;16", 25700, [100, 100, 100]),
        ("1", 1, [255, 255, 255]),
        ("P", 0, [0, 0, 0]),
    ],
)
def test_every_kind_of_png_is_read(tmp_path, mode, level, want):
    Image.new(mode, (20, 16), level).save(tmp_path / "image.png")
    assert read_image(tmp_path / "image.png")[3, 5].tolist() == want


def test_a_palette_with_a_transparent_colour_is_put_on_white(tmp_path):
    Image.new("P", (20, 16), 0).save(tmp_path / "image.png", transparency=0)
    assert (read_image(tmp_path / "image.png") == 255).all()


def test_files_that_are_no_picture_are_refused(tmp_path):
    with pytest.raises(ImageError, match="There is no file"):
        read_image(tmp_path / "missing.png")
    (tmp_path / "text.png").write_text("hello")
    with pytest.raises(ImageError, match="not an image"):
        read_image(tmp_path / "text.png")
    Image.effect_noise((64, 64), 50).save(tmp_path / "whole.png")
    (tmp_path / "half.png").write_bytes((tmp_path / "whole.png").read_bytes()[:1000])
    with pytest.raises(ImageError, match="damaged"):
        read_image(tmp_path / "half.png")
