"""Picture files of every kind, with flaws and without, and files that are none."""

import io
import logging
import struct
import zlib

import numpy as np
import pytest
import torch
from multitalk_pack.pipeline.errors import ImageError
from multitalk_pack.pipeline.media import picture as picture_module
from multitalk_pack.pipeline.media.picture import is_picture, read_image, to_rgb
from PIL import Image, ImageCms, ImageOps, PngImagePlugin
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


ORIENTATIONS = {  # what a camera of this EXIF orientation has stored, from the upright picture
    1: lambda picture: picture,
    2: ImageOps.mirror,
    3: lambda picture: picture.rotate(180),
    4: ImageOps.flip,
    5: lambda picture: ImageOps.mirror(picture.rotate(-90, expand=True)),
    6: lambda picture: picture.rotate(90, expand=True),
    7: lambda picture: ImageOps.mirror(picture.rotate(90, expand=True)),
    8: lambda picture: picture.rotate(-90, expand=True),
}
CORNERS = ((255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0))


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tiff", "avif"])
def test_a_photo_is_turned_upright(tmp_path, suffix, orientation):
    upright = np.zeros((32, 48, 3), np.uint8)
    for level, rows, columns in zip(CORNERS, (0, 0, 16, 16), (0, 24, 0, 24), strict=True):
        upright[rows : rows + 16, columns : columns + 24] = level
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = ORIENTATIONS[orientation](Image.fromarray(upright))
    image = read_image(saved(tmp_path / f"photo.{suffix}", stored, exif=exif, quality=100))
    assert image.shape == upright.shape and image.dtype == torch.uint8
    for level, row, column in zip(CORNERS, (8, 8, 24, 24), (12, 36, 12, 36), strict=True):
        assert (image[row, column].int() - torch.tensor(level)).abs().max() < 12  # what compression leaves


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


PNG_START = b"\x89PNG\r\n\x1a\n"


def chunk(kind, content, checksum=None):
    checksum = zlib.crc32(kind + content).to_bytes(4, "big") if checksum is None else checksum
    return struct.pack(">I", len(content)) + kind + content + checksum


def png(*chunks, depth=8, colors=2, pixel=b"\x64\x32\x0a"):
    """A PNG of 16x16 equal pixels, with chunks before the picture's."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 16, 16, depth, colors, 0, 0, 0))
    rows = zlib.compress((b"\0" + pixel * 16) * 16)
    return PNG_START + header + b"".join(chunks) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("colors", "pixel", "want"),
    [
        (0, b"\x64\x64", [100, 100, 100]),
        (2, b"\x64\x64\x32\x32\x0a\x0a", [100, 50, 10]),
        (4, b"\x64\x64\xff\xff", [100, 100, 100]),
        (6, b"\x64\x64\x32\x32\x0a\x0a\x00\x00", [255, 255, 255]),
    ],
    ids=["grey", "RGB", "grey, alpha", "RGB, alpha"],
)
def test_a_png_of_16_bits_is_read(tmp_path, colors, pixel, want):
    (tmp_path / "deep.png").write_bytes(png(depth=16, colors=colors, pixel=pixel))
    assert read_image(tmp_path / "deep.png")[3, 5].tolist() == want


FLAWS = {
    "a text whose checksum is wrong": chunk(b"tEXt", b"a\0b", b"oops"),
    "a gamma whose checksum is wrong": chunk(b"gAMA", b"\0\0\xb1\x8f", b"oops"),
    "EXIF data whose checksum is wrong": chunk(b"eXIf", b"MM\0*\0\0\0\x08\0\0", b"oops"),
    "a profile whose checksum is wrong": chunk(b"iCCP", b"icc\0\0" + zlib.compress(b"x"), b"oops"),
    "a profile without a name": chunk(b"iCCP", b"icc"),
    "a profile that cannot be unpacked": chunk(b"iCCP", b"icc\0\0damaged"),
    "a profile that unpacks to 300 MB": chunk(b"iCCP", b"icc\0\0" + zlib.compress(bytes(300_000_000))),
    "a text that unpacks to 300 MB": chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(300_000_000))),
    "a text that is none": chunk(b"iTXt", b"\xff"),
    "a chunk of nobody's": chunk(b"abCd", bytes(1000)),
    "texts of 20 MB": b"".join(chunk(b"tEXt", b"%d\0" % i + b"x" * 100_000) for i in range(200)),
}


@pytest.mark.parametrize("flaw", FLAWS.values(), ids=FLAWS)
def test_flaws_beside_the_picture_refuse_nothing(tmp_path, flaw):
    (tmp_path / "flawed.png").write_bytes(png(flaw))
    assert (read_image(tmp_path / "flawed.png") == torch.tensor([100, 50, 10], dtype=torch.uint8)).all()


OTHER_KINDS = {  # a mode, a file and its options
    "CMYK": ("CMYK", "jpg", {"quality": 100}), "YCbCr": ("YCbCr", "tiff", {}), "palette": ("P", "gif", {}),
    "palette with a profile": ("P", "png", {"icc_profile": ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))}),
    "bitmap": ("RGB", "bmp", {}), "JPEG 2000": ("RGB", "jp2", {}), "AVIF": ("RGB", "avif", {"quality": 100}),
    "progressive": ("RGB", "jpg", {"quality": 100, "progressive": True}), "TGA": ("RGB", "tga", {}),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHER_KINDS)
def test_other_kinds_of_files_are_the_picture(tmp_path, name):
    mode, suffix, options = OTHER_KINDS[name]
    if "icc_profile" in options:
        options = options | {"icc_profile": options["icc_profile"].tobytes()}
    picture = Image.new("RGB", (32, 32), SKIN).convert(mode)
    image = read_image(saved(tmp_path / f"image.{suffix}", picture, **options))
    assert (image.int() - torch.tensor(SKIN)).abs().max() <= (60 if mode == "P" else 3)  # the web's palette


@pytest.mark.parametrize("suffix", ["gif", "webp", "png", "tiff", "avif"])
def test_of_an_animation_the_first_picture_is_taken(tmp_path, suffix):
    first, second = (Image.new("RGB", (32, 32), level) for level in (SKIN, LIPS))
    path = saved(tmp_path / f"moving.{suffix}", first, save_all=True, append_images=[second])
    assert (read_image(path).int() - torch.tensor(SKIN)).abs().max() <= 3 and is_picture(path)


def test_a_photo_with_another_picture_or_anything_else_behind_it_is_read(tmp_path):
    noise = [Image.effect_noise((64, 64), 50).convert("RGB") for _ in range(2)]
    saved(tmp_path / "both.jpg", noise[0], format="MPO", save_all=True, append_images=noise[1:], quality=90)
    saved(tmp_path / "one.jpg", noise[0], quality=90)
    whole = read_image(tmp_path / "one.jpg")
    assert torch.equal(read_image(tmp_path / "both.jpg"), whole)
    (tmp_path / "moving.jpg").write_bytes((tmp_path / "one.jpg").read_bytes() + b"\0\0\0\x18ftypmp42" + bytes(5000))
    assert torch.equal(read_image(tmp_path / "moving.jpg"), whole)


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
@pytest.mark.parametrize("seed", range(8))
def test_a_jpeg_that_lacks_its_end_marker_alone_is_whole(tmp_path, progressive, subsampling, seed):
    """Of a part of a block, zeros may be the rest by chance: the last bits of 1 in 10 pictures that lack 3 bytes."""
    data = io.BytesIO()
    noise = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (64, 64, 3), np.uint8))
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


BROKEN_PROFILES = {"empty": b"", "text": b"broken", "zeros": bytes(200), "cut short": DISPLAY_P3[:300]}


@pytest.mark.parametrize("profile", BROKEN_PROFILES.values(), ids=BROKEN_PROFILES)
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


@pytest.mark.parametrize("progressive", [False, True])
def test_a_photo_of_two_hundred_megapixels_is_reduced_where_it_fits_into_memory(tmp_path, progressive):
    """16320x12240 is what telephones make; a progressive JPEG of that size takes 1.2 GB to decode."""
    path = tmp_path / "photo.jpg"
    Image.new("L", (16320, 12240), 90).save(path, quality=90, progressive=progressive)
    if progressive:
        with pytest.raises(ImageError, match="16320x12240; of this kind"):
            read_image(path)
    else:
        image = read_image(path)
        assert image.shape == (6120, 8160, 3) and (image[::100, ::100].int() - 90).abs().max() <= 1


READING = """
from multitalk_pack.benchmarks.measure import PeakMemory
from multitalk_pack.pipeline.media import picture as picture_module
from multitalk_pack.pipeline.media.picture import read_image
from multitalk_pack.pipeline.conditioning.reference_image import fit
import torch
peak = PeakMemory(torch.device("cpu"))
fit(read_image(sys.argv[1]), (640, 640))
print(json.dumps(peak.megabytes()))
"""


def heavy(*values):
    return pytest.param(*values, marks=pytest.mark.long)


LARGEST = [
    ("png", "RGBA", 8000, {"compress_level": 1}), heavy("png", "RGB", 8000, {"compress_level": 1}),
    heavy("jpg", "CMYK", 8000, {}), heavy("png", "L", 8000, {}), heavy("png", "P", 8000, {"transparency": 0}),
    heavy("tiff", "F", 8000, {}), heavy("gif", "P", 8000, {"transparency": 0}),
    heavy("jpg", "RGB", 8000, {"progressive": True, "icc_profile": DISPLAY_P3}), heavy("webp", "RGBA", 5700, {}),
    heavy("jp2", "RGBA", 5700, {}), heavy("avif", "RGBA", 5700, {"speed": 10}),
]  # fmt: skip


@linux_only
@pytest.mark.parametrize(("suffix", "mode", "side", "options"), LARGEST)
def test_the_largest_picture_takes_less_than_a_gigabyte(tmp_path, suffix, mode, side, options):
    path = saved(tmp_path / f"large.{suffix}", Image.new(mode, (side, side)), **options)
    assert run_script(READING, path) < 1000


@pytest.mark.parametrize("suffix", ["webp", "avif", "jp2"])
def test_formats_that_are_decoded_twice_may_have_half_as_many_pixels(tmp_path, suffix, monkeypatch):
    monkeypatch.setattr(picture_module, "MAX_PIXELS", 2000)
    path = saved(tmp_path / f"image.{suffix}", Image.new("RGB", (32, 32)))
    with pytest.raises(ImageError, match="of this kind at most"):
        read_image(path)
    assert read_image(saved(tmp_path / "image.png", Image.new("RGB", (32, 32)))).shape == (32, 32, 3)


def test_kinds_that_run_programs_or_are_no_pictures_are_not_opened(tmp_path):
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n%%EOF\n")
    with pytest.raises(ImageError, match="not an image"):
        read_image(tmp_path / "a.png")
    assert not is_picture(tmp_path / "a.png")


def test_damaged_exif_data_refuse_nothing(tmp_path):
    path = saved(tmp_path / "photo.jpg", Image.new("RGB", (32, 48), SKIN), exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01")
    assert read_image(path).shape == (48, 32, 3)
