"""A whole run from files to a file, as the command line makes it, with a complete tiny set."""

import dataclasses
import gc
import os
import pickle
import signal
import subprocess
import sys
import wave
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from multitalk_pack.benchmarks.tiny_weights import TinySizes, write_tiny
from multitalk_pack.pipeline import request as requests
from multitalk_pack.pipeline.__main__ import _parser, _request
from multitalk_pack.pipeline.config import GenerationConfig, GuidanceConfig, SamplingConfig, WindowConfig
from multitalk_pack.pipeline.errors import MultiTalkError, Problems
from multitalk_pack.pipeline.generation import window
from multitalk_pack.pipeline.media.video import read_video
from multitalk_pack.pipeline.request import Files, Request
from multitalk_pack.pipeline.weights import build
from PIL import Image
from support.pack import PACK
from support.run import RecordingHost

SIZES = TinySizes(width=128, layers=1, ffn=128, vae_width=2)
RATE_HZ = 16000


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    tiny = write_tiny(tmp_path_factory.mktemp("tiny"), sizes=SIZES)
    return Files(tiny.transformer, tiny.vae, tiny.text_encoder, tiny.image_encoder, tiny.audio_encoder, tiny.adapter)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    pixels = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "portrait.png")
    tone(folder / "low.wav", 220, 0.8)
    tone(folder / "high.wav", 880, 0.4)
    return folder


def tone(path, pitch_hz, duration_s):
    samples = 8000 * np.sin(2 * np.pi * pitch_hz * np.arange(round(duration_s * RATE_HZ)) / RATE_HZ)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE_HZ)
        file.writeframes(samples.astype("<i2").tobytes())


@pytest.fixture
def asked(files, inputs, tmp_path):
    """A request for two windows, in two steps of one pass."""
    return Request(
        image=inputs / "portrait.png",
        audio=(inputs / "low.wav",),
        files=files,
        output=tmp_path / "out.mp4",
        size=(32, 48),
        config=GenerationConfig(
            num_frames=0,
            allow_long=True,
            sampling=SamplingConfig(steps=1),
            guidance=GuidanceConfig(1.0, 1.0),
            windows=WindowConfig(num_frames=13, motion_frames=5),
        ),
    )


def made(request):
    frames, fps, sound = read_video(requests.run(request, RecordingHost()))
    return frames, fps, sound


@pytest.mark.parametrize(("fps", "num_frames"), [(16, 13), (30, 24)])
def test_the_sound_is_as_long_as_the_picture_at_any_rate(asked, fps, num_frames):
    frames, got_fps, sound = made(dataclasses.replace(asked, fps=float(fps)))
    assert (len(frames), got_fps) == (num_frames, fps)
    assert abs(sound.duration_s - len(frames) / fps) <= 1 / fps


def pitch_hz(sound, start_s, duration_s=0.2):
    """The loudest frequency of a part of the sound, 0 where it is silent."""
    start, length = round(start_s * sound.rate_hz), round(duration_s * sound.rate_hz)
    heard = sound.samples[0, start : start + length]
    return 0 if heard.abs().max() < 0.02 else torch.fft.rfft(heard).abs().argmax().item() / duration_s


@pytest.mark.parametrize(("size", "shift"), [((480, 832), 7.0), ((704, 1280), 11.0)])
def test_a_size_of_ones_own_has_the_schedule_of_its_class(asked, size, shift):
    config = requests.look(dataclasses.replace(asked, size=size), Problems(), RecordingHost()).draft.config
    assert config.sampling.shift_for(config.resolution) == shift


def test_what_is_heard_may_be_another_sound_than_what_moves_the_lips(asked, inputs):
    frames, _, sound = made(dataclasses.replace(asked, heard=inputs / "high.wav"))
    assert len(frames) == 20, "the voice makes the length"
    assert pitch_hz(sound, 0.1) == pytest.approx(880, abs=10)
    assert pitch_hz(sound, 0.55) == 0, "silence where the soundtrack has ended"


def test_voices_start_when_they_are_told(asked, inputs):
    audio = (inputs / "low.wav", inputs / "high.wav")
    frames, _, sound = made(dataclasses.replace(asked, audio=audio, starts=(0.0, 1.0)))
    assert len(frames) == 35
    assert pitch_hz(sound, 0.3) == pytest.approx(220, abs=10)
    assert pitch_hz(sound, 1.1) == pytest.approx(880, abs=10)
    with pytest.raises(MultiTalkError, match="2 voices need as many starts, got 1"):
        made(dataclasses.replace(asked, audio=audio, starts=(0.0,)))


def test_a_bystander_keeps_quiet_and_boxes_say_who_is_who(asked, inputs):
    boxes = ((0.0, 0.0, 50.0, 100.0), (50.0, 0.0, 100.0, 100.0))
    quiet_right = dataclasses.replace(asked, audio=(inputs / "low.wav", None), boxes=boxes)
    quiet_left = dataclasses.replace(quiet_right, boxes=boxes[::-1])
    right, left = made(quiet_right), made(quiet_left)
    assert len(right[0]) == len(left[0]) == 20
    assert not (right[0] == left[0]).all(), "who speaks makes a difference"


def test_every_window_has_its_prompt(asked, monkeypatch):
    from multitalk_pack.pipeline.conditioning.conditioning import Conditioning

    taken, prompt_for = [], Conditioning.prompt_for
    monkeypatch.setattr(
        Conditioning, "prompt_for", lambda self, window: taken.append(prompt_for(self, window)) or taken[-1]
    )
    made(dataclasses.replace(asked, prompt="A man. | A man sings on a stage."))
    assert len(taken) == 2 and len(taken[0]) < len(taken[1])


KILLED = """
import sys; sys.path.insert(0, {tests!r}); import conftest
import os, pickle, signal
from multitalk_pack.pipeline import request
from multitalk_pack.pipeline.generation import store
from support.run import RecordingHost
save = store.WindowStore.save
def save_and_die(self, *given):
    save(self, *given)
    os.kill(os.getpid(), signal.SIGKILL)
store.WindowStore.save = save_and_die
request.run(pickle.load(sys.stdin.buffer), RecordingHost())
"""


def counted(monkeypatch):
    """A list that grows by one with each window that is sampled."""
    windows, denoise = [], window.denoise
    monkeypatch.setattr(window, "denoise", lambda *given: windows.append(given) or denoise(*given))
    return windows


def test_a_killed_run_goes_on_and_writes_the_same_bytes(asked, tmp_path, monkeypatch):
    def in_folder(name):
        return dataclasses.replace(asked, resume_folder=tmp_path / name, output=tmp_path / f"{name}.mp4")

    tests = str(PACK / "tests")
    killed = subprocess.run(
        [sys.executable, "-c", KILLED.format(tests=tests)],
        env={**os.environ, "PYTHONPATH": tests, "OMP_WAIT_POLICY": "passive"},
        input=pickle.dumps(in_folder("killed")),
        capture_output=True,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert len(list((tmp_path / "killed").glob("*/*.safetensors"))) == 1
    whole = requests.run(in_folder("whole"), RecordingHost()).read_bytes()
    sampled = counted(monkeypatch)
    assert requests.run(in_folder("killed"), RecordingHost()).read_bytes() == whole
    assert len(sampled) == 1, "only the window that was missing"
    assert not list((tmp_path / "killed").glob("*/*")), "the video is written, the windows are gone"


def test_restart_makes_every_window_again(asked, tmp_path, monkeypatch):
    kept = dataclasses.replace(asked, resume_folder=tmp_path / "runs")
    sampled = counted(monkeypatch)
    with monkeypatch.context() as unfinished:
        unfinished.setattr("multitalk_pack.pipeline.generation.store.WindowStore.discard", lambda self: None)
        made(kept)
        assert len(sampled) == 2
        made(kept)
        assert len(sampled) == 2, "all windows were found"
    made(dataclasses.replace(kept, restart=True))
    assert len(sampled) == 4


def test_what_is_worth_knowing_is_told_before_the_run(asked, caplog):
    caplog.set_level("WARNING")
    made(dataclasses.replace(asked, config=dataclasses.replace(asked.config, num_frames=60)))
    told = next(record.message for record in caplog.records if "Worth knowing" in record.message)
    assert "The voices end after 0.8 s, the video after 2.4 s" in told


def test_the_command_line_says_all_of_it():
    line = ["--image", "a.png", "--audio", "a.wav", "--audio", "silent", "--start", "0", "--start", "2.5",
            "--heard", "mix.wav", "--box", "0,0,50,100", "--box", "50,0,100,100", "--fps", "30000/1001",
            "--resume-folder", "runs", "--restart"]  # fmt: skip
    request = _request(_parser().parse_args(line), Problems())
    assert request.audio == (Path("a.wav"), None) and request.starts == (0, 2.5)
    assert request.heard == Path("mix.wav") and request.restart and request.resume_folder == Path("runs")
    assert request.boxes[1] == (50, 0, 100, 100) and request.fps == pytest.approx(29.97, abs=1e-3)


def test_encoders_are_dropped_before_the_transformer_is_read(asked, monkeypatch):
    encoders = []

    def remembered(load):
        def load_and_remember(path, **options):
            model = load(path, **options)
            encoders.append(weakref.ref(model))
            return model

        return load_and_remember

    for name in ("load_text_encoder", "load_audio_encoder"):
        monkeypatch.setattr(build, name, remembered(getattr(build, name)))
    load = build.load_transformer
    left = []

    def count_and_load(*given, **named):
        gc.collect()
        left.extend(encoder for encoder in encoders if encoder() is not None)
        return load(*given, **named)

    monkeypatch.setattr(build, "load_transformer", count_and_load)
    made(asked)
    assert len(encoders) == 2 and not left
