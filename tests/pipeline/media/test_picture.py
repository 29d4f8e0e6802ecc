"""Picture files of every kind, with flaws and without, and files that are none."""

import io
import logging
import struct
import zlib

import numpy as np
import pytest
import torch
from multitalk_pack.pipeline.errors import ImageError
from multitalk_pack.pipeline.media.picture import is_picture, read_image, to_rgb
from PIL import Image, ImageCms, PngImagePlugin
from support.peak import linux_only, run_script

SKIN, LIPS = (224, 172, 150), (196, 90, 96)


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


def saved(path, picture, **options):
    picture.save(path, **options)
    return path


def test_texts_and_profiles_of_any_size_leave_a_png_readable(tmp_path):
    picture, texts = Image.new("RGB", (64, 48), SKIN), PngImagePlugin.PngInfo()
    for name in ("workflow", "prompt"):
        texts.add_itxt(name, "x" * 1_100_000, zip=True)
        texts.add_text(name, "y" * 1_100_000, zip=True)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes() + bytes(1_200_000)
    plain = read_image(saved(tmp_path / "plain.png", picture))
    assert torch.equal(read_image(saved(tmp_path / "texts.png", picture, pnginfo=texts)), plain)
    assert torch.equal(read_image(saved(tmp_path / "icc.png", picture, icc_profile=profile)), plain)


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("subsampling", [0, 2])
def test_a_jpeg_that_lacks_its_end_marker_alone_is_whole(tmp_path, progressive, subsampling):
    data = io.BytesIO()
    noise = Image.effect_noise((64, 64), 50).convert("RGB")
    noise.save(data, "JPEG", quality=90, progressive=progressive, subsampling=subsampling)
    path, data = tmp_path / "photo.jpg", data.getvalue()
    path.write_bytes(data)
    whole = read_image(path)
    for num_missing in (1, 2):
        path.write_bytes(data[:-num_missing])
        assert torch.equal(read_image(path), whole)
    for num_missing in (3, 4, 6, 20, len(data) // 2):
        path.write_bytes(data[:-num_missing])
        with pytest.raises(ImageError, match="damaged"):
            read_image(path)


def profile_of(*columns):
    """An sRGB profile with other primaries: XYZ of red, green and blue under D50."""
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    for name, column in zip((b"rXYZ", b"gXYZ", b"bXYZ"), columns, strict=True):
        (place,) = struct.unpack_from(">I", data, data.index(name) + 4)  # in the table of tags
        struct.pack_into(">3i", data, place + 8, *(round(65536 * value) for value in column))
    return bytes(data)


DISPLAY_P3 = profile_of((0.51512, 0.2412, -0.00105), (0.29198, 0.69225, 0.04189), (0.1571, 0.06657, 0.78407))


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tiff"])
@pytest.mark.parametrize(("level", "expected"), [(SKIN, (234, 171, 148)), (LIPS, (213, 81, 93))])
def test_the_colours_of_a_phones_photo_are_converted_to_srgb(tmp_path, suffix, mode, level, expected):
    if suffix == "jpg" and mode == "RGBA":
        pytest.skip("JPEG has no alpha")
    options = {"jpg": {"quality": 100}, "webp": {"lossless": True}}.get(suffix, {})
    picture = Image.new("RGB", (32, 32), level).convert(mode)
    image = read_image(saved(tmp_path / f"photo.{suffix}", picture, icc_profile=DISPLAY_P3, **options))
    assert (image.int() - torch.tensor(expected)).abs().max() <= 2


@pytest.mark.parametrize("profile", [b"", b"broken", bytes(200), DISPLAY_P3[:300]])
def test_a_broken_profile_refuses_nothing(tmp_path, profile):
    path = saved(tmp_path / "photo.png", Image.new("RGB", (32, 32), SKIN), icc_profile=profile)
    assert read_image(path)[0, 0].tolist() == list(SKIN)


def test_srgb_pictures_keep_their_levels_to_the_bit(tmp_path):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    levels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    path = saved(tmp_path / "photo.png", Image.fromarray(levels), icc_profile=profile)
    assert np.array_equal(read_image(path).numpy(), levels)


def test_a_grey_profile_on_a_colour_picture_is_not_used(tmp_path):
    profile = bytearray(DISPLAY_P3)
    profile[16:20] = b"GRAY"
    path = saved(tmp_path / "photo.png", Image.new("RGB", (32, 32), SKIN), icc_profile=bytes(profile))
    assert read_image(path)[0, 0].tolist() == list(SKIN)


RAMP = np.tile(np.linspace(0, 1, 64, dtype=np.float32), (32, 1))


@pytest.mark.parametrize(
    "numbers",
    [RAMP, RAMP * 255, RAMP * 65535, (RAMP * 255).astype(np.int32), (RAMP * 65535).astype(np.int32)],
    ids=["0..1", "0..255", "0..65535", "int 0..255", "int 0..65535"],
)
def test_grey_numbers_of_any_range_are_the_picture(tmp_path, numbers):
    image = read_image(saved(tmp_path / "grey.tiff", Image.fromarray(numbers)))
    assert (image[..., 0].float() / 255 - torch.from_numpy(RAMP)).abs().max() < 0.01


@pytest.mark.parametrize("numbers", [RAMP - 0.5, RAMP * 1e6, np.full_like(RAMP, np.nan)])
def test_grey_numbers_of_no_range_are_refused(tmp_path, numbers):
    with pytest.raises(ImageError, match=r"holds numbers in .*8 or 16 bits"):
        read_image(saved(tmp_path / "grey.tiff", Image.fromarray(numbers.astype(np.float32))))


def png_header(width, height):
    """A PNG that says how large it is, and holds nothing."""
    data = io.BytesIO()
    Image.new("RGB", (1, 1)).save(data, "PNG")
    head = bytearray(data.getvalue())
    struct.pack_into(">II", head, 16, width, height)
    struct.pack_into(">I", head, 29, zlib.crc32(bytes(head[12:29])))
    return bytes(head)


@pytest.mark.parametrize(("width", "height"), [(13000, 13000), (170_000_000, 1), (16, 10_000_000), (60_000, 60_000)])
def test_too_many_pixels_are_refused_before_they_are_decoded(tmp_path, width, height):
    path = tmp_path / "bomb.png"
    path.write_bytes(png_header(width, height))
    with pytest.raises(ImageError, match="67 million pixels are read"):
        read_image(path)


def test_a_jpeg_of_too_many_pixels_is_reduced(tmp_path):
    path = saved(tmp_path / "photo.jpg", Image.new("RGB", (9000, 9000), SKIN), quality=95)
    image = read_image(path)
    assert image.shape == (4500, 4500, 3)
    assert (image[0, 0].int() - torch.tensor(SKIN)).abs().max() <= 2


READING = """
from multitalk_pack.benchmarks.measure import PeakMemory
from multitalk_pack.pipeline.media.picture import read_image
from multitalk_pack.pipeline.conditioning.reference_image import fit
import torch
peak = PeakMemory(torch.device("cpu"))
fit(read_image(sys.argv[1]), (640, 640))
print(json.dumps(peak.megabytes()))
"""


@linux_only
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L"])
def test_the_largest_picture_takes_less_than_a_gigabyte(tmp_path, mode):
    path = saved(tmp_path / "large.png", Image.new(mode, (8000, 8000)), compress_level=1)
    assert run_script(READING, path) < 1000


def test_kinds_that_run_programs_or_are_no_pictures_are_not_opened(tmp_path):
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n%%EOF\n")
    with pytest.raises(ImageError, match="not an image"):
        read_image(tmp_path / "a.png")
    assert not is_picture(tmp_path / "a.png")


def test_damaged_exif_data_refuse_nothing(tmp_path):
    path = saved(tmp_path / "photo.jpg", Image.new("RGB", (32, 48), SKIN), exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01")
    assert read_image(path).shape == (48, 32, 3)
