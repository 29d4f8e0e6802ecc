"""Videos of any length: as many frames as the sound lasts, each at its time, in memory that does not grow."""

import wave
from fractions import Fraction
from itertools import product
from types import SimpleNamespace

import av
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from multitalk_pack.benchmarks.tiny_weights import WeightSizes, write_tiny
from multitalk_pack.pipeline import MultiTalkPipeline, generate
from multitalk_pack.pipeline.generation import denoiser
from multitalk_pack.pipeline.shapes import FPS, VAE_STRIDE_SPACE
from PIL import Image
from support.run import RecordingHost

SIZES = WeightSizes(width=128, layers=1, ffn=128, vae_width=2)
HEIGHT, WIDTH = 32, 48
RATE_HZ = 8000
BLOCKS = torch.arange(HEIGHT * WIDTH // VAE_STRIDE_SPACE**2).view(-1, WIDTH // VAE_STRIDE_SPACE)  # a bit each


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("long")
    pixels = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "portrait.png")
    return folder


@pytest.fixture(scope="module")
def render(folder):
    """Writes the video of the voice in the folder, in one step of one pass."""
    tiny = write_tiny(folder / "weights", sizes=SIZES)
    pipeline = MultiTalkPipeline.from_files(
        base=tiny.transformer, adapter=tiny.adapter, vae=tiny.vae, text_encoder=tiny.text_encoder,
        image_encoder=tiny.image_encoder, audio_encoder=tiny.audio_encoder, host=RecordingHost(),
    )  # fmt: skip
    usual = {
        "size": (HEIGHT, WIDTH),
        "steps": 1,
        "text_scale": 1.0,
        "audio_scale": 1.0,
        "color_strength": 0.0,
        "deflicker": 0.0,
    }
    return lambda **options: pipeline.render(
        folder / "out.mp4", folder / "portrait.png", folder / "voice.wav", **usual, **options
    )


def speak(path, num_samples):
    """A tone in a file."""
    samples = 8000 * np.sin(2 * np.pi * 220 * np.arange(num_samples) / RATE_HZ)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE_HZ)
        file.writeframes(samples.astype("<i2").tobytes())


class NumberingCoders:
    """Stands in for the VAE: each frame shows the number that its window gives it, a bit in each block."""

    def __init__(self, *_):
        self.window = None

    def encode(self, work, window, motion_frames, *_):
        self.window = window
        if window.index:
            last = frames_of(window)[:, : window.overlap]
            assert torch.equal(motion_frames, last), "a window goes on from the last frames made"
        return SimpleNamespace(condition=None)

    def decode(self, *_):
        return frames_of(self.window)


def frames_of(window):
    numbers = 1 + torch.arange(window.start, window.start + window.num_frames)  # a frame is never all black
    bits = (numbers.view(-1, 1, 1) >> BLOCKS) & 1
    side = VAE_STRIDE_SPACE
    return (2.0 * bits - 1).repeat_interleave(side, 1).repeat_interleave(side, 2).expand(3, -1, -1, -1)


def show_numbers(monkeypatch):
    """Windows whose frames show their numbers, without a forward of the network."""
    monkeypatch.setattr(generate, "Coders", NumberingCoders)
    monkeypatch.setattr(generate.WindowTensors, "of", lambda *_: SimpleNamespace(motion_latents=None))
    monkeypatch.setattr(denoiser, "prepare_passes", lambda *_: None)
    monkeypatch.setattr(denoiser, "denoise", lambda forwards, latents, *_, **__: latents)


def numbers_in(container):
    """The numbers that a video's frames show."""
    middle = VAE_STRIDE_SPACE // 2
    for frame in container.decode(video=0):
        plane = frame.planes[0]
        luma = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)[:HEIGHT, :WIDTH]
        bits = luma[middle::VAE_STRIDE_SPACE, middle::VAE_STRIDE_SPACE] > 128
        yield int((bits.astype(np.int64) << BLOCKS.numpy()).sum()) - 1


def ends_s(container):
    """When picture and sound of a video end."""
    streams = container.streams.video[0], container.streams.audio[0]
    return [(stream.start_time + stream.duration) * stream.time_base for stream in streams]


def check_length(path, duration_s, fps):
    """As many frames as the duration has, the sound within one of them; returns how many."""
    count = max(1, round(duration_s * fps))
    with av.open(str(path)) as container:
        assert (container.streams.video[0].frames, container.streams.video[0].average_rate) == (count, fps)
        picture_s, sound_s = ends_s(container)
    assert abs(picture_s - count / fps) < Fraction(1, 1000)
    assert abs(sound_s - picture_s) < 1 / fps
    return count


def check_times(path, count, fps):
    """Each of `count` frames shows what the model made for the middle of its time."""
    with av.open(str(path)) as container:
        numbers = list(numbers_in(container))
    assert numbers == [int((frame + Fraction(1, 2)) * FPS / fps) for frame in range(count)]


@pytest.mark.parametrize("fps", [16, 24, 25, 30])
@pytest.mark.parametrize(
    "duration_s", ["0.2", "3.25", *(pytest.param(s, marks=pytest.mark.long) for s in ("1", "3.24"))]
)
def test_a_sampled_video_has_the_frames_of_its_sound(folder, render, duration_s, fps):
    duration_s = Fraction(duration_s)
    speak(folder / "voice.wav", int(duration_s * RATE_HZ))
    check_length(render(fps=fps), duration_s, Fraction(fps))


RATES = 16, 24, 25, 30
LONG = [pytest.param(*video, marks=pytest.mark.long) for video in product(["59.97", "600"], RATES)]


@pytest.mark.parametrize(("duration_s", "fps"), [*product(["10"], RATES), ("23.99", 24), *LONG])
def test_a_long_video_shows_every_frame_at_its_time(folder, render, duration_s, fps, monkeypatch):
    show_numbers(monkeypatch)
    duration_s, fps = Fraction(duration_s), Fraction(fps)
    speak(folder / "voice.wav", int(duration_s * RATE_HZ))
    video = render(fps=fps)
    check_times(video, check_length(video, duration_s, fps), fps)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    num_samples=st.integers(1, 20 * RATE_HZ),
    fps=st.fractions(8, 60, max_denominator=1001),
    sizes=st.tuples(st.integers(2, 24), st.integers(0, 23)).filter(lambda sizes: sizes[1] < sizes[0]),
)
def test_any_length_in_any_windows_at_any_rate_is_met(folder, render, monkeypatch, num_samples, fps, sizes):
    speak(folder / "voice.wav", num_samples)
    with monkeypatch.context() as patch:
        show_numbers(patch)
        video = render(fps=fps, window_frames=4 * sizes[0] + 1, motion_frames=4 * sizes[1] + 1)
    check_times(video, check_length(video, Fraction(num_samples, RATE_HZ), fps), fps)
