"""The Python entry: whole runs from files to a file, with a complete tiny set."""

import dataclasses
import gc
import os
import signal
import wave
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from multitalk_pack.benchmarks.tiny_weights import WeightSizes, write_tiny
from multitalk_pack.pipeline.__main__ import ASSETS, _media, _options, _parser, main
from multitalk_pack.pipeline.conditioning.conditioning import Conditioning
from multitalk_pack.pipeline.config import Recipe
from multitalk_pack.pipeline.errors import MultiTalkError
from multitalk_pack.pipeline.generation import denoiser
from multitalk_pack.pipeline.generation.store import WindowStore
from multitalk_pack.pipeline.media.video import read_video
from multitalk_pack.pipeline.models.transformer.attention import SelfAttention
from multitalk_pack.pipeline.multitalk_pipeline import MultiTalkPipeline
from multitalk_pack.pipeline.request import Request
from multitalk_pack.pipeline.weights import build
from PIL import Image
from support import forked
from support.pack import PACK
from support.run import RecordingHost

SIZES = WeightSizes(width=128, layers=1, ffn=128, vae_width=2)
RATE_HZ = 16000


@pytest.fixture(scope="module")
def talk(tmp_path_factory):
    tiny = write_tiny(tmp_path_factory.mktemp("tiny"), sizes=SIZES)
    return MultiTalkPipeline.from_files(
        base=tiny.transformer, adapter=tiny.adapter, vae=tiny.vae, text_encoder=tiny.text_encoder,
        image_encoder=tiny.image_encoder, audio_encoder=tiny.audio_encoder, host=RecordingHost(),
    )  # fmt: skip


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
def request_of(inputs):
    """The arguments of a request for two windows, in one step of one pass."""
    usual = {
        "image": inputs / "portrait.png", "audio": inputs / "low.wav", "size": (32, 48), "steps": 1, "text_scale": 1.0,
        "audio_scale": 1.0, "window_frames": 13, "motion_frames": 5,
    }  # fmt: skip
    return lambda **changes: usual | changes


@pytest.fixture
def video_of(talk, request_of, tmp_path):
    """Frames, rate and sound of the video of a request."""

    def read(**changes):
        video = read_video(talk.render(tmp_path / "out.mp4", **request_of(**changes)))
        return video.frames, video.fps, video.sound

    return read


def test_the_entry_of_five_lines(tmp_path):
    from multitalk_pack.pipeline import MultiTalkPipeline

    talk = MultiTalkPipeline.bundled(device="cpu")
    choices = {"num_frames": 5, "steps": 1, "size": (64, 64)}
    path = talk.render(
        tmp_path / "o.mp4", ASSETS / "drawn_portrait.png", ASSETS / "drawn_speech.wav", "talk", **choices
    )
    frames = torch.cat(list(talk(ASSETS / "drawn_portrait.png", ASSETS / "drawn_speech.wav", "talk", **choices)), 1)
    assert frames.shape == (3, 5, 64, 64) and frames.abs().max() <= 1
    assert path.exists() and read_video(path).frames.shape == (5, 64, 64, 3)


@pytest.mark.parametrize(("fps", "num_frames"), [(16, 13), (30, 24)])
def test_the_sound_is_as_long_as_the_picture_at_any_rate(video_of, fps, num_frames):
    frames, got_fps, sound = video_of(fps=float(fps))
    assert (len(frames), got_fps) == (num_frames, fps)
    assert abs(sound.duration_s - len(frames) / fps) <= 1 / fps


def pitch_hz(sound, start_s, duration_s=0.2):
    """The loudest frequency of a part of the sound, 0 where it is silent."""
    start, length = round(start_s * sound.rate_hz), round(duration_s * sound.rate_hz)
    samples = sound.samples[0, start : start + length]
    return 0 if samples.abs().max() < 0.02 else torch.fft.rfft(samples).abs().argmax().item() / duration_s


@pytest.mark.parametrize(("size", "shift"), [((480, 832), 7.0), ((704, 1280), 11.0)])
def test_a_size_of_ones_own_has_the_schedule_of_its_class(talk, request_of, size, shift):
    assert talk.check(Request.of(**request_of(size=size))).spec.shift == shift


def test_the_soundtrack_may_be_another_sound_than_what_moves_the_lips(video_of, inputs):
    frames, _, sound = video_of(soundtrack=inputs / "high.wav")
    assert len(frames) == 20, "the voice makes the length"
    assert pitch_hz(sound, 0.1) == pytest.approx(880, abs=10)
    assert pitch_hz(sound, 0.55) == 0, "silence where the soundtrack has ended"


def test_voices_start_when_they_are_told(video_of, inputs):
    audio = [inputs / "low.wav", inputs / "high.wav"]
    frames, _, sound = video_of(audio=audio, start=(0.0, 1.0))
    assert len(frames) == 35
    assert pitch_hz(sound, 0.3) == pytest.approx(220, abs=10)
    assert pitch_hz(sound, 1.1) == pytest.approx(880, abs=10)
    with pytest.raises(MultiTalkError, match="2 voices need as many starts, got 1"):
        video_of(audio=audio, start=(0.0,))


def test_a_bystander_keeps_quiet_and_boxes_say_who_is_who(video_of, inputs):
    boxes = ((0.0, 0.0, 50.0, 100.0), (50.0, 0.0, 100.0, 100.0))
    voices = [inputs / "low.wav", None]
    right, left = video_of(audio=voices, box=boxes), video_of(audio=voices, box=boxes[::-1])
    assert len(right[0]) == len(left[0]) == 20
    assert not (right[0] == left[0]).all(), "who speaks makes a difference"


def test_every_window_has_its_prompt(video_of, monkeypatch):
    prompts, prompt_for = [], Conditioning.prompt_for
    monkeypatch.setattr(
        Conditioning, "prompt_for", lambda self, window: prompts.append(prompt_for(self, window)) or prompts[-1]
    )
    video_of(prompt="A man. | A man sings on a stage.")
    assert len(prompts) == 2 and len(prompts[0]) < len(prompts[1])


def test_a_video_is_dubbed_by_infinitetalk_alone(talk, request_of, video_of, tmp_path):
    source = talk.render(tmp_path / "source.mp4", **request_of())
    with pytest.raises(MultiTalkError, match="A video of 20 frames is dubbed by InfiniteTalk's weights alone"):
        video_of(image=source)
    files = dataclasses.replace(talk.files, recipe=Recipe.INFINITETALK)
    dub = MultiTalkPipeline.of(files, host=RecordingHost())
    frames = read_video(dub.render(tmp_path / "dubbed.mp4", **request_of(image=source))).frames
    assert frames.shape == (20, 32, 48, 3)


@pytest.mark.parametrize(
    ("choice", "wanted"),
    [({"size": "64x64"}, "size wants height and width in pixels, such as .480, 832., not '64x64'"),
     ({"size": (64, 64, 64)}, "size wants height and width"), ({"size": 64}, "size wants height and width"),
     ({"num_frames": "41"}, "num_frames wants a whole number, not '41'"), ({"steps": 4.5}, "steps wants a whole"),
     ({"seed": None}, "seed wants a whole number, not None"), ({"fps": "25"}, "fps wants a number"),
     ({"text_scale": [1]}, "text_scale wants a number"), ({"skip_tail": "no"}, "skip_tail wants true or false")],
)  # fmt: skip
def test_a_value_of_the_wrong_kind_is_refused_in_words(choice, wanted):
    with pytest.raises(MultiTalkError, match=wanted):
        Request.of("face.png", "voice.wav", **choice)


def test_words_that_are_no_choice_are_refused_with_all_else(request_of):
    with pytest.raises(MultiTalkError, match=r"(?s)2 things keep.*'fast' is no acceleration.*steps must be in 1..1000"):
        Request.of(**request_of(acceleration="fast", steps=0))


def count_windows(monkeypatch):
    """A list that grows by one with each window that is sampled."""
    windows, denoise = [], denoiser.denoise
    monkeypatch.setattr(denoiser, "denoise", lambda *args, **agreed: windows.append(args) or denoise(*args, **agreed))
    return windows


def test_a_killed_run_goes_on_and_writes_the_same_bytes(talk, request_of, tmp_path, monkeypatch):
    def in_folder(name):
        return request_of(resume_folder=tmp_path / name, output=tmp_path / f"{name}.mp4")

    def save_and_die(self, *given):
        save(self, *given)
        os.kill(os.getpid(), signal.SIGKILL)

    save = WindowStore.save
    with monkeypatch.context() as patch:
        patch.setattr(WindowStore, "save", save_and_die)
        assert forked.is_killed(lambda: talk.render(**in_folder("killed")))
    assert len(list((tmp_path / "killed").glob("*/*.safetensors"))) == 1
    whole = talk.render(**in_folder("whole")).read_bytes()
    windows = count_windows(monkeypatch)
    assert talk.render(**in_folder("killed")).read_bytes() == whole
    assert len(windows) == 1, "only the window that was missing"
    assert not list((tmp_path / "killed").glob("*/*")), "the video is written, the windows are gone"


def test_restart_makes_every_window_again(video_of, tmp_path, monkeypatch):
    resume, windows = {"resume_folder": tmp_path / "runs"}, count_windows(monkeypatch)
    with monkeypatch.context() as unfinished:
        unfinished.setattr("multitalk_pack.pipeline.generation.store.WindowStore.discard", lambda self: None)
        video_of(**resume)
        assert len(windows) == 2
        video_of(**resume)
        assert len(windows) == 2, "all windows were there"
    video_of(**resume, restart=True)
    assert len(windows) == 4


def test_what_is_worth_knowing_is_told_before_the_run(video_of, caplog):
    caplog.set_level("WARNING")
    video_of(num_frames=60)
    notes = next(record.message for record in caplog.records if "Worth knowing" in record.message)
    assert "The voices end after 0.8 s, the video after 2.4 s" in notes


def test_the_command_line_says_all_of_it():
    line = ["--image", "a.png", "--audio", "a.wav", "--audio", "silent", "--start", "0", "--start", "2.5",
            "--soundtrack", "mix.wav", "--box", "0,0,50,100", "--box", "50,0,100,100", "--fps", "30000/1001",
            "--steps", "8", "--size", "64x32"]  # fmt: skip
    args = _parser().parse_args(line)
    request = Request.of(*_media(args), args.prompt, **_options(args))
    first, second = request.voices
    assert (first.sound, second.sound) == (Path("a.wav"), None) and (first.start_s, second.start_s) == (0, 2.5)
    assert request.soundtrack == Path("mix.wav") and second.box == (50, 0, 100, 100)
    config = request.config
    assert config.fps == pytest.approx(29.97, abs=1e-3) and (config.steps, config.size) == (8, (32, 64))
    assert (config.shift, config.text_scale, config.num_frames) == (None, None, 0)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--resume-folder", "runs"], "Finished windows are kept, the same command goes on from them."),
        ([], "No window is kept to go on from; --resume-folder keeps them."),
        (
            ["--remote", "fal-ai/ai-avatar"],
            "What was bought is written down: the same command goes on from it, and buys nothing twice.",
        ),
    ],
)
def test_ctrl_c_is_one_line_that_says_what_is_kept(options, said, monkeypatch, capsys):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(MultiTalkPipeline, "render", interrupted)
    assert main(["--demo", *options]) == 130
    assert capsys.readouterr().err.strip() == f"Stopped. {said}"


def test_a_fault_is_near_its_cause(talk, request_of, tmp_path, monkeypatch):
    """From the entry to the attention there are at most nine calls of ours, and few from the loop to the block."""

    def fail(*_):
        raise RuntimeError("a fault")

    monkeypatch.setattr(SelfAttention, "forward", fail)
    with pytest.raises(RuntimeError, match="a fault") as fault:
        talk.render(tmp_path / "out.mp4", **request_of())
    engine_folder = str(PACK / "pipeline")
    ours = [entry.frame.code.name for entry in fault.traceback if str(entry.path).startswith(engine_folder)]
    assert ours[-1] == "forward" and len(ours) <= 7, ours  # and `main` and its module before them
    assert ours.index("forward") - ours.index("generate") <= 5, ours


def test_encoders_are_dropped_before_the_transformer_is_read(talk, request_of, tmp_path, monkeypatch):
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

    def count_and_load(*args, **kwargs):
        gc.collect()
        left.extend(encoder for encoder in encoders if encoder() is not None)
        return load(*args, **kwargs)

    monkeypatch.setattr(build, "load_transformer", count_and_load)
    fresh = MultiTalkPipeline.of(talk.files, host=RecordingHost())
    fresh.render(tmp_path / "out.mp4", **request_of())
    assert len(encoders) == 2 and not left
