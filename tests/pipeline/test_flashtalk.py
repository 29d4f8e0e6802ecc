"""FlashTalk: the model told by its folder's name, run as it was distilled, from its published layout to a file."""

import dataclasses
import os
import signal
from pathlib import Path

import pytest
import torch
from multitalk_pack.pipeline.__main__ import main
from multitalk_pack.pipeline.config import ColorMatch, GenerationConfig, Recipe, SamplerKind, WindowPlan
from multitalk_pack.pipeline.errors import ConfigError, MultiTalkError
from multitalk_pack.pipeline.generation import denoiser
from multitalk_pack.pipeline.generation.recipes import find_recipe
from multitalk_pack.pipeline.generation.run_spec import make_run_spec
from multitalk_pack.pipeline.generation.store import WindowStore
from multitalk_pack.pipeline.media.video import read_video
from multitalk_pack.pipeline.model_files import ModelFiles
from multitalk_pack.pipeline.multitalk_pipeline import MultiTalkPipeline
from multitalk_pack.pipeline.request import Request
from multitalk_pack.pipeline.weights.catalog import check_transformer
from PIL import Image
from support import forked, run
from support.flashtalk import INDEX, SHARDS, write_flashtalk, write_single_file
from support.media import hum, write_sound


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return write_flashtalk(tmp_path_factory.mktemp("flashtalk"))


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    Image.effect_noise((96, 64), 80).convert("RGB").save(folder / "portrait.png")
    write_sound(folder / "voice.wav", hum(2.6, 16000, 1), "pcm_s16le", "mono")
    return folder


def spec(**choices):
    return make_run_spec(GenerationConfig(**choices), Recipe.FLASHTALK, (448, 768), 250)


def test_a_run_has_the_published_choices():
    """Four steps without guidance, from noise drawn anew at each, over windows of 33 frames that share 5."""
    run_spec = spec()
    torch.testing.assert_close(run_spec.timesteps(), torch.tensor([1000, 937.5, 2500 / 3, 625, 0]))
    assert run_spec.sampler is SamplerKind.RENOISE and len(run_spec.new_guidance().passes) == 1
    starts = [window.start for window in run_spec.windows]
    assert starts == list(range(0, 245, 28)) and {window.num_frames for window in run_spec.windows} == {33}


def test_a_short_request_has_a_whole_window_and_a_person_s_choices_count():
    short = make_run_spec(GenerationConfig(num_frames=9), Recipe.FLASHTALK, (448, 768), None)
    assert [window.num_frames for window in short.windows] == [33]
    own = spec(sampler=SamplerKind.EULER, steps=8, skip_tail=False, color_match=ColorMatch.FRAME)
    assert own.sampler is SamplerKind.EULER and own.timesteps()[-2] < 10
    assert not own.postprocess.fades_seam and own.postprocess.color_frames == 1
    with pytest.raises(ConfigError, match="Take the exact plan"):
        assert spec(plan=WindowPlan.PUBLISHED).windows


NAMES = {
    "SoulX-FlashTalk-14B": Recipe.FLASHTALK,
    "SoulX-FlashTalk-14B/diffusion_pytorch_model-00002-of-00008.safetensors": Recipe.FLASHTALK,
    "Flash_Talk/diffusion_pytorch_model.safetensors.index.json": Recipe.FLASHTALK,
    "wan/flash-talk_14B-Q8_0.gguf": Recipe.FLASHTALK,
    "flashtalk/multitalk.safetensors": Recipe.MULTITALK,
    "flashtalk/Wan2_1-InfiniteTalk-Single.safetensors": Recipe.INFINITETALK,
    "flash/talk.safetensors": Recipe.MULTITALK,
    "model_patches/multitalk_demo.safetensors": Recipe.BUNDLED,
}


@pytest.mark.parametrize("name", NAMES)
def test_the_model_is_told_by_its_file_s_name_and_else_by_its_folder_s(name):
    assert find_recipe(Path(name)) is NAMES[name]


@pytest.mark.parametrize("name", ["", INDEX, *SHARDS])
def test_every_way_to_name_the_published_files_is_the_model(files, name):
    path = files.base / name
    assert check_transformer(path, None).startswith("Wan2.1 I2V")
    talk = MultiTalkPipeline.of(dataclasses.replace(files, base=path), host=run.RecordingHost())
    assert talk.model.recipe is Recipe.FLASHTALK


def test_one_file_in_a_folder_of_the_model_s_name_is_the_model(tmp_path):
    path = write_single_file(tmp_path)
    assert check_transformer(path, None).startswith("Wan2.1 I2V")
    assert MultiTalkPipeline.of(ModelFiles.of(base=path), host=run.RecordingHost()).model.recipe is Recipe.FLASHTALK


def check(files, inputs, **choices):
    talk = MultiTalkPipeline.of(files, host=run.RecordingHost())
    usual = {"image": inputs / "portrait.png", "audio": inputs / "voice.wav", "size": (32, 48)}
    return talk.check(Request.of(**(usual | choices)))


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        (dict(audio=2, box=((0, 0, 50, 100), (50, 0, 100, 100))), "FlashTalk animates one person.*InfiniteTalk's"),
        (dict(box=((0, 0, 50, 100),)), "FlashTalk animates one person.*without a place"),
        (dict(plan="published"), "Take the exact plan"),
        (dict(acceleration="high", text_scale=5.0), "Set the text scale to 1"),
    ],
)
def test_what_the_model_cannot_do_is_refused_before_it_is_read(files, inputs, choices, message):
    if choices.get("audio") == 2:
        choices = choices | {"audio": [inputs / "voice.wav"] * 2}
    with pytest.raises(MultiTalkError, match=rf"(?s){message}"):
        check(files, inputs, **choices)


def test_a_cache_finds_nothing_in_four_steps_and_guidance_is_noted(files, inputs, caplog):
    caplog.set_level("INFO")
    run_spec = check(files, inputs, acceleration="regular", text_scale=3.0, steps=20).spec
    assert run_spec.steps == 20
    assert "FlashTalk was made for few steps; 20 cost time" in caplog.text
    assert "FlashTalk was made without text guidance; set the text scale from 3 to 1" in caplog.text
    assert check(files, inputs, acceleration="high").spec.acceleration.cache.value == "none"
    assert "blurred" not in caplog.text


def command(files, inputs, output, *more):
    named = {
        **{name: getattr(files, name) for name in ("base", "vae", "text_encoder", "image_encoder", "audio_encoder")},
        "image": inputs / "portrait.png", "audio": inputs / "voice.wav", "size": "48x32", "output": output,
        "device": "cpu",
    }  # fmt: skip
    return [*(f"--{name.replace('_', '-')}={value}" for name, value in named.items()), *more]


def test_a_killed_command_line_goes_on_to_the_same_bytes(files, inputs, tmp_path, monkeypatch):
    """The noise of a window's steps does not depend on what the process drew before it."""
    whole, part = tmp_path / "whole.mp4", tmp_path / "part.mp4"
    assert main(command(files, inputs, whole)) == 0
    assert read_video(whole).frames.shape == (65, 32, 48, 3)
    resumed = command(files, inputs, part, f"--resume-folder={tmp_path / 'runs'}")

    def save_and_die(self, index, *given):
        finished = save(self, index, *given)
        if index == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return finished

    save = WindowStore.save
    with monkeypatch.context() as patch:
        patch.setattr(WindowStore, "save", save_and_die)
        assert forked.is_killed(lambda: main(resumed))
    assert len(list((tmp_path / "runs").glob("*/*.safetensors"))) == 2 and not part.exists()
    (grown,) = (tmp_path / "runs").glob("*/part.mp4")
    beginning = read_video(grown)
    assert 25 <= len(beginning.frames) <= 33
    assert beginning.sound.duration_s >= len(beginning.frames) / 25 - 0.1  # but for a packet of AAC
    assert torch.equal(beginning.frames, read_video(whole).frames[: len(beginning.frames)])
    windows, denoise = [], denoiser.denoise
    monkeypatch.setattr(denoiser, "denoise", lambda *args, **agreed: windows.append(args) or denoise(*args, **agreed))
    assert main(resumed) == 0
    assert part.read_bytes() == whole.read_bytes() and len(windows) == 1
    assert not grown.exists() and not list(tmp_path.glob("*.part.mp4"))
