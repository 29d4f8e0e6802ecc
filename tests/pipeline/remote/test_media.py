"""What is sent decodes to what came in; what is no picture or sound is refused."""

import io
import wave

import numpy as np
import pytest
import torch
from multitalk_pack.pipeline.errors import AudioError, ImageError, RemoteError
from multitalk_pack.pipeline.remote import media
from PIL import Image
from support.remote import tone, write_video


def pixels(sent: media.Media) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(sent.data)))


def test_a_portrait_comes_back_to_the_level():
    image = torch.randint(0, 256, (1, 9, 7, 3)).float() / 255
    sent = media.encode_image(image)
    assert (sent.content_type, sent.file_name) == ("image/png", "portrait.png")
    assert (pixels(sent) == (image[0] * 255).round().numpy()).all()


def test_transparent_parts_become_black_and_grey_becomes_rgb():
    image = torch.ones(1, 4, 4, 4)
    image[..., 3] = 0.5
    assert (pixels(media.encode_image(image)) == 128).all()
    assert pixels(media.encode_image(torch.ones(1, 4, 4, 1))).shape == (4, 4, 3)


def test_a_large_portrait_is_shrunk_and_a_noisy_one_becomes_jpeg(monkeypatch):
    assert max(pixels(media.encode_image(torch.zeros(1, 100, 2100, 3))).shape) == 2048
    monkeypatch.setattr(media, "MAX_PNG_BYTES", 1000)
    assert media.encode_image(torch.rand(1, 64, 64, 3)).content_type == "image/jpeg"


@pytest.mark.parametrize("shape", [(2, 8, 8, 3), (1, 8, 8, 2), (8, 8, 3), (1, 0, 8, 3)])
def test_what_is_no_single_picture_is_refused(shape):
    with pytest.raises(ImageError):
        media.encode_image(torch.zeros(shape))


def test_sound_comes_back_and_is_cut_to_the_video():
    samples = tone(9).expand(1, 2, -1)
    sent = media.encode_sound(samples, 8000, 41)
    with wave.open(io.BytesIO(sent.data)) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (8000, 2, 2)
        assert file.getnframes() == round((41 / 25 + 0.5) * 8000)
        heard = np.frombuffer(file.readframes(file.getnframes()), "<i2").reshape(-1, 2) / 32767
    assert np.abs(heard - samples[0, :, : len(heard)].T.numpy()).max() < 1 / 32767
    assert sent.content_type == "audio/wav"


def test_many_channels_are_averaged_and_loud_ones_clipped():
    sent = media.encode_sound(torch.full((1, 6, 800), 1.5), 800, 41)
    with wave.open(io.BytesIO(sent.data)) as file:
        assert file.getnchannels() == 1
        assert np.frombuffer(file.readframes(10), "<i2").max() == 32767


@pytest.mark.parametrize(
    "samples", [torch.zeros(1, 1, 0), torch.zeros(2, 1, 8), torch.zeros(8), torch.full((1, 1, 8), torch.nan)]
)
def test_what_is_no_sound_is_refused(samples):
    with pytest.raises(AudioError):
        media.encode_sound(samples, 8000, 41)


def test_a_short_sound_is_warned_of(caplog):
    media.encode_sound(tone(1), 8000, 145)
    assert "shorter than the video (5.80 s)" in caplog.text


def test_more_than_20_mb_are_not_sent():
    with pytest.raises(RemoteError, match="20 MB"):
        media.Media(bytes(20 * 2**20 + 1), "image/png", "portrait.png")


def test_a_file_is_what_its_bytes_say():
    assert media.container(b"\0\0\0\x18ftypisom") == "mp4"
    assert media.container(b"\x1aE\xdf\xa3" + bytes(8)) == "webm"
    assert media.container(b"MZ" + bytes(20)) is None


def test_a_video_is_opened_and_counted(tmp_path):
    write_video(tmp_path / "a.mp4", 10)
    facts = media.probe(tmp_path / "a.mp4")
    assert (facts.width, facts.height, facts.fps, facts.num_frames, facts.has_sound) == (32, 32, 25, 10, False)
    (tmp_path / "b.mp4").write_bytes(b"\0\0\0\x18ftypisom")
    with pytest.raises(RemoteError, match=r"b\.mp4 is not a video"):
        media.probe(tmp_path / "b.mp4")
