"""Pictures and sounds decode to what came in; what is no picture is refused."""

import io
import wave

import numpy as np
import pytest
import torch
from multitalk_pack.pipeline.audio.waveform import Sound
from multitalk_pack.pipeline.errors import ImageError, RemoteError
from multitalk_pack.pipeline.media.picture import to_rgb
from multitalk_pack.pipeline.remote import media
from PIL import Image
from support.remote import tone, voice, write_video


def pixels(upload: media.Media) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(upload.data)))


def levels(upload: media.Media) -> tuple[np.ndarray, int]:
    """Samples `n c` in -1..1, and the rate."""
    with wave.open(io.BytesIO(upload.data)) as file:
        assert file.getsampwidth() == 2
        content = np.frombuffer(file.readframes(file.getnframes()), "<i2")
        return content.reshape(-1, file.getnchannels()) / 32767, file.getframerate()


def test_a_portrait_comes_back_to_the_level():
    image = torch.randint(0, 256, (1, 19, 17, 3)).float() / 255
    upload = media.encode_image(image)
    assert (upload.content_type, upload.file_name) == ("image/png", "portrait.png")
    assert (pixels(upload) == (image[0] * 255).round().numpy()).all()


@pytest.mark.parametrize("channels", [2, 4])
def test_transparent_parts_look_as_they_do_locally(channels):
    image = torch.rand(1, 16, 16, channels)
    assert (pixels(media.encode_image(image)) == to_rgb(image).numpy()).all()
    image[..., -1] = 0
    assert (pixels(media.encode_image(image)) == 255).all()


def test_grey_becomes_rgb():
    assert pixels(media.encode_image(torch.ones(1, 16, 16, 1))).shape == (16, 16, 3)


def test_a_large_portrait_is_shrunk_and_a_noisy_one_becomes_jpeg(monkeypatch):
    assert max(pixels(media.encode_image(torch.zeros(1, 100, 2100, 3))).shape) == 2048
    monkeypatch.setattr(media, "MAX_PNG_BYTES", 1000)
    assert media.encode_image(torch.rand(1, 64, 64, 3)).content_type == "image/jpeg"


@pytest.mark.parametrize(
    "image",
    [torch.zeros(2, 16, 16, 3), torch.zeros(0, 16, 16, 3), torch.zeros(1, 16, 16, 5), torch.zeros(1, 8, 16, 3),
     torch.full((1, 16, 16, 3), torch.nan), torch.full((1, 16, 16, 3), 255.0), "portrait.png"],
    ids=["batch", "none", "five channels", "small", "NaN", "0..255", "text"],
)  # fmt: skip
def test_what_is_no_single_picture_is_refused(image):
    with pytest.raises(ImageError):
        media.encode_image(image)


def test_sound_comes_back_and_is_cut_to_the_video():
    stereo = torch.cat([tone(9)[0], 0.5 * tone(9)[0]])
    upload = media.encode_sound(Sound(stereo, 8000), 41 / 25)
    samples, rate_hz = levels(upload)
    assert (rate_hz, samples.shape) == (8000, (round((41 / 25 + 0.5) * 8000), 2))
    assert np.abs(samples - stereo[:, : len(samples)].T.numpy()).max() < 1 / 32767
    assert upload.content_type == "audio/wav"


def test_sound_as_long_as_the_video_is_sent_whole():
    assert len(levels(media.encode_sound(voice(9)))[0]) == 9 * 8000


def test_many_channels_become_one():
    samples, _ = levels(media.encode_sound(Sound(torch.full((5, 800), 0.5), 800), 41 / 25))
    assert samples.shape[1] == 1 and np.allclose(samples, 0.5, atol=1e-4)


def test_stereo_whose_channels_cancel_is_sent_as_one_of_them():
    speech = tone(2)[0]
    samples, _ = levels(media.encode_sound(Sound(torch.cat([speech, -speech]), 8000), 41 / 25))
    assert samples.shape[1] == 1 and np.corrcoef(samples[:, 0], speech[0, : len(samples)])[0, 1] > 0.999


@pytest.mark.parametrize("peak", [1.5, 20.0, 32000.0])
def test_loud_sound_is_turned_down_and_not_clipped(peak, caplog):
    speech = tone(2)[0] * 2 * peak
    samples, _ = levels(media.encode_sound(Sound(speech, 8000), 41 / 25))
    assert np.abs(samples).max() == pytest.approx(1, abs=1e-3) and "turned down" in caplog.text
    assert np.corrcoef(samples[:, 0], speech[0, : len(samples)])[0, 1] > 0.99999


def test_more_than_20_mb_are_not_sent():
    with pytest.raises(RemoteError, match="20 MB"):
        media.Media(bytes(20 * 2**20 + 1), "image/png", "portrait.png")


def test_a_file_is_what_its_bytes_say():
    assert media.container(b"\0\0\0\x18ftypisom") == "mp4"
    assert media.container(b"\x1aE\xdf\xa3" + bytes(8)) == "webm"
    assert media.container(b"MZ" + bytes(20)) is None


def test_a_video_is_opened_and_counted(tmp_path):
    write_video(tmp_path / "a.mp4", 10)
    properties = media.probe(tmp_path / "a.mp4")
    assert (properties.width, properties.height, properties.fps) == (32, 32, 25)
    assert (properties.num_frames, properties.has_sound) == (10, False)
    (tmp_path / "b.mp4").write_bytes(b"\0\0\0\x18ftypisom")
    with pytest.raises(RemoteError, match=r"b\.mp4 cannot be read as a video"):
        media.probe(tmp_path / "b.mp4")
