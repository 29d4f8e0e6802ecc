"""Settings that do not go together, memory and disk that are not there: told before a run, with what would fit."""

import dataclasses
import re
import shutil
from types import SimpleNamespace

import psutil
import pytest
import torch
from multitalk_pack.pipeline.acceleration.presets import AccelerationOptions, CacheKind
from multitalk_pack.pipeline.audio.dialogue import Arrangement, Speech
from multitalk_pack.pipeline.audio.embeds import AudioEmbeds
from multitalk_pack.pipeline.audio.waveform import Sound
from multitalk_pack.pipeline.conditioning.conditioning import Conditioning
from multitalk_pack.pipeline.conditioning.speakers import Place
from multitalk_pack.pipeline.config import GenerationConfig, Recipe, WindowPlan
from multitalk_pack.pipeline.errors import MultiTalkError, Problems
from multitalk_pack.pipeline.generation.run_spec import make_run_spec
from multitalk_pack.pipeline.generation.store import run_key
from multitalk_pack.pipeline.memory.placement import GB, MemoryConfig, MemoryLimit
from multitalk_pack.pipeline.model_files import ModelFiles
from multitalk_pack.pipeline.preflight import checks, timings
from multitalk_pack.pipeline.preflight.checks import (
    RunInputs,
    RunSetup,
    check_masks,
    check_run,
    check_voices,
    describe,
    timed,
)
from safetensors.torch import load_file, save_file
from support.run import RecordingHost


def assert_matches(message, text):
    with pytest.raises(MultiTalkError, match=message):
        raise MultiTalkError(text)


def audio(samples, rate_hz=16000):
    return Speech(Sound(torch.as_tensor(samples)[None].float(), rate_hz))


CONFIG = GenerationConfig(steps=20)


def spec(config=CONFIG, recipe=Recipe.MULTITALK, size=(64, 64), num_frames=200, num_speakers=1, **changes):
    return make_run_spec(config, recipe, size, num_frames, num_speakers, **changes)


def checked(run_spec=None, free=8 * GB, inputs=None, **setup):
    problems, host = Problems(), RecordingHost()
    host.free_memory = lambda: free
    places = inputs or RunInputs(num_places=(run_spec or spec()).num_speakers)
    return problems, check_run(run_spec or spec(), places, RunSetup(**setup), problems, host)


def tokens(channels):
    return torch.zeros(3, channels)


def conditioning(prompts=(64,), image=160, frames=1):
    """Encoded tokens of these channels for a picture or a video."""
    return Conditioning(
        torch.zeros(frames, 64, 64, 3, dtype=torch.uint8), tuple(map(tokens, prompts)), tokens(prompts[-1]), vae=None,
        image_embeds=tokens(image),
    )  # fmt: skip


MISFITS = {
    "motion frames of the default window": (
        lambda: checked(spec(dataclasses.replace(CONFIG, motion_frames=101))),
        "num_frames: A window of 97 frames cannot start with 101 motion frames. Make it longer or hand on fewer"),
    "short audio for the published plan": (
        lambda: checked(spec(dataclasses.replace(CONFIG, plan=WindowPlan.PUBLISHED), num_frames=60, num_features=60)),
        r"num_frames: The published plan needs audio longer than a window of 81 frames.*exact plan"),
    "cache without steps": (
        lambda: checked(spec(GenerationConfig(steps=4), acceleration=AccelerationOptions(CacheKind.TEA))),
        "acceleration: TeaCache finds nothing to reuse in 4 steps. Take at least 7"),
    "voices without places": (
        lambda: checked(spec(num_speakers=3), inputs=RunInputs(num_places=1)),
        "speakers: 3 voices need as many places in the picture, got 1"),
    "a video to dub without InfiniteTalk": (
        lambda: checked(inputs=RunInputs(num_source_frames=9)),
        "image: A video of 9 frames is dubbed by InfiniteTalk's weights alone, got MultiTalk. Take InfiniteTalk's"),
    "odd size": (
        lambda: checked(spec(size=(72, 64))), "size: height must be a multiple of 16, got 72. The nearest is"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISFITS)
def test_options_that_do_not_go_together_are_told(name, no_tensor_is_read):
    make, message = MISFITS[name]
    problems, _ = make()
    assert len(problems.errors) == 1, problems.errors
    assert_matches(message, problems.errors[0])


def weights(files, **changes):
    return ModelFiles(base=files.base, adapter=files.adapter, **changes)


@pytest.mark.parametrize(("num_source_frames", "is_noted"), [(1, False), (50, True), (200, False)])
def test_a_video_to_dub_that_is_shorter_than_the_speech_is_noted(num_source_frames, is_noted):
    inputs = RunInputs(num_source_frames=num_source_frames)
    problems, _ = checked(spec(num_frames=200, recipe=Recipe.INFINITETALK), inputs=inputs)
    note = "The video to dub lasts 2.0 s, the speech 8.0 s: its last frame stays."
    assert (note in problems.notes) is is_noted and not problems.errors


@pytest.mark.parametrize("num_prompts", [1, 3, 4, 6])
def test_prompts_for_no_window_are_noted(num_prompts):
    long = spec(dataclasses.replace(CONFIG, window_frames=81, motion_frames=9))  # 200 frames
    problems, estimated = checked(long, inputs=RunInputs(num_prompts=num_prompts))
    left = num_prompts - len(estimated.windows)
    said = (
        f"The prompt has {num_prompts} parts, one for each window, and the video has 3: the last {left} are not used."
    )
    assert (said in problems.notes) is (left > 0) and len(estimated.windows) == 3


def test_more_devices_than_can_share_a_forward_are_told(files, no_tensor_is_read):
    assert not checked(files=weights(files))[0].errors
    problems, _ = checked(files=weights(files), num_devices=50)
    assert_matches(r"devices: 50 devices are too many: \d+ attention heads", problems.errors[0])


def test_both_sides_of_a_size_are_told_at_once():
    problems, _ = checked(spec(size=(100, 200)))
    assert_matches(
        r"size: width .* got 200. The nearest is 192. height .* got 100. The nearest is 96.", problems.errors[0]
    )


def test_sounds_are_counted_in_memory():
    silent, loud = (checked(inputs=RunInputs(sound_bytes=count))[1].ram_bytes for count in (0, 10**9))
    assert loud == silent + 10**9


def test_features_of_another_encoder_are_told(files, no_tensor_is_read):
    inputs = RunInputs(audio_embeds=AudioEmbeds(torch.zeros(1, 210, 12, 768), 200))
    problems, _ = checked(inputs=inputs, files=weights(files))
    assert_matches(r"audio_embeds: .* have \(12, 768\) .*, the audio weights take \(2, 128\)", problems.errors[0])


@pytest.mark.parametrize(
    ("channels", "message"),
    [
        (dict(prompts=(64, 768)), "conditioning: The tokens of the prompt have 768 channels, .* with umt5-xxl"),
        (dict(image=1024), "conditioning: The tokens of the image have 1024 channels, .* with clip_vision_h"),
    ],
)
def test_tokens_of_other_encoders_are_told(channels, message, files, no_tensor_is_read):
    problems, _ = checked(inputs=RunInputs.encoded(None, conditioning(**channels)), files=weights(files))
    assert len(problems.errors) == 1
    assert_matches(message, problems.errors[0])


@pytest.mark.parametrize("memory", [MemoryConfig(MemoryLimit.ALL), MemoryConfig(resident_blocks=2)])
def test_memory_that_is_not_there_is_noted_with_the_setting_that_fits(memory, files, no_tensor_is_read):
    parts, large = dict(files=weights(files), memory=memory), spec(size=(480, 832))
    plenty, roomy = checked(large, 64 * GB, **parts)
    assert plenty.errors == [] and roomy.placement.resident_blocks == 2
    problems, _ = checked(large, GB // 5, **parts)
    assert_matches(
        r"memory: .* takes about .* GB, 0.2 GB .* are free. Even the smallest video needs", problems.errors[0]
    )
    streamed = parts | dict(memory=MemoryConfig(resident_blocks=0))
    least = checked(large, 64 * GB, **streamed)[1].placement.estimate
    problems, _ = checked(large, least - 1, **parts)
    assert_matches("window_frames to [0-9]+, or take a smaller size", problems.errors[0])
    frames = int(re.search("window_frames to ([0-9]+)", problems.errors[0])[1])
    assert GenerationConfig(window_frames=frames).window_frames == frames  # which the long video options take
    problems, _ = checked(spec(size=(480, 832), num_frames=41), least // 3, **parts)
    assert "window_frames" not in problems.errors[0]  # none that is shorter has room for the motion frames


def test_disk_and_kept_frames_that_do_not_fit_are_told(monkeypatch, tmp_path):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10**6))
    problems, _ = checked(store=tmp_path / "new" / "runs")
    assert_matches(r"resume: Finished windows need up to 0.01 GB in .* turn resuming off", problems.errors[0])
    monkeypatch.undo()
    problems, _ = checked(spec(num_frames=90000, size=(960, 960)), keeps_frames=True)
    assert_matches(
        "keep_frames: 90000 frames take .* Turn keep_frames off and take the video output", problems.errors[0]
    )
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=10**6))
    problems, _ = checked()
    assert_matches("window_frames: A window of [0-9]+ frames takes .* GB are free. Take shorter", problems.errors[0])


def test_windows_that_are_kept_already_need_no_more_room(monkeypatch, tmp_path):
    required = checked(store=tmp_path)[1].disk_bytes
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=required // 2))
    assert any("Finished windows" in problem for problem in checked(store=tmp_path)[0].errors)
    folder = tmp_path / run_key("half of it")
    folder.mkdir()
    (folder / "0000.mkv").write_bytes(bytes(required - required // 2))
    assert not checked(store=tmp_path)[0].errors


def test_a_video_longer_than_its_embeds_is_noted():
    def notes(num_frames):
        inputs = RunInputs(audio_embeds=AudioEmbeds(torch.zeros(1, num_frames + 10, 2, 128), num_frames))
        return checked(spec(num_frames=145), inputs=inputs)[0].notes

    assert any("cover 38 frames, the video has 145" in note for note in notes(38))
    assert not notes(140)  # what follows is the tail of silence


def test_disk_is_needed_only_where_windows_are_kept(tmp_path):
    assert "disk: up to" in describe(*checked(store=tmp_path))
    assert "disk:" not in describe(*checked())


MASKS = {
    "empty": ([Place(mask=torch.zeros(60, 80)), Place(mask=torch.ones(60, 80))], "mask of speaker 1 is empty. Paint"),
    "for another image": ([Place(mask=torch.ones(60, 80)), Place(mask=torch.ones(60, 30))], "speaker 2 is 30x60"),
    "the same": ([Place(mask=torch.ones(60, 80))] * 2, "Speakers 1 and 2 are in the same place: 100%"),
    "no mask at all": ([Place(mask=torch.ones(5)), Place()], r"mask of speaker 1 must be h w, got the shape \(5,\)"),
}


@pytest.mark.parametrize("name", MASKS)
def test_masks_that_name_nobody_are_told(name):
    places, message = MASKS[name]
    problems = Problems()
    check_masks(places, (60, 80), (64, 64), problems)
    assert_matches(f"speakers: .*{message}", problems.errors[0])


def test_what_runs_but_perhaps_not_as_meant_is_noted(files):
    problems = Problems()
    check_voices([audio(torch.zeros(16000)), audio(torch.ones(100))], Arrangement.PARALLEL, 250, 25, problems)
    assert not problems.errors
    for text in ("Voice 1 is silent", "Voice 2 lasts 0.01 s", "voices end after 1.0 s, the video after 10.0 s"):
        assert any(text in note for note in problems.notes), text
    lora_path = files.folder / "lightx2v_rank64.safetensors"
    shutil.copy(files / "lora.safetensors", lora_path)
    few = weights(files, loras=((lora_path, 1.0),))
    assert any("made for few steps; 20 cost time" in note for note in checked(files=few)[0].notes)
    assert any("blurred" in note for note in checked(spec(GenerationConfig(steps=4)), files=weights(files))[0].notes)
    assert not checked(spec(recipe=Recipe.INFINITETALK), inputs=RunInputs(num_source_frames=9))[0].errors
    single = files.folder / "infinitetalk-single.safetensors"
    shutil.copy(files.adapter, single)
    notes = checked(spec(num_speakers=2), files=ModelFiles(base=files.base, adapter=single))[0].notes
    assert "infinitetalk-single.safetensors hears one speaker, got 2. Take MultiTalk's weights." in notes


def test_a_voice_that_starts_after_the_end_is_named():
    problems, second = Problems(), dataclasses.replace(audio(torch.ones(16000)), start_s=9.0)
    check_voices([audio(torch.ones(16000)), second], Arrangement.PARALLEL, 100, 25, problems)
    assert any("Voice 2 is not heard: it starts at 9.0 s" in note for note in problems.notes)


def test_the_estimate_counts_windows_and_forwards_and_learns_the_time(files, tmp_path, monkeypatch):
    setup, run_spec = RunSetup(files=weights(files), timings=tmp_path), spec()
    problems, run = checked(run_spec, files=setup.files, timings=tmp_path)
    assert run.windows == (89, 89, 89) or sum(run.windows) >= 200
    assert run.forwards == len(run.windows) * 20 * 3 and run.seconds is None
    plain = spec(dataclasses.replace(CONFIG, text_scale=1.0, audio_scale=1.0))
    assert checked(plain)[1].forwards == len(run.windows) * 20
    monkeypatch.setattr(timings, "time", SimpleNamespace(monotonic=iter((7.0, 67.0)).__next__))
    with timed(run_spec, setup, run, RecordingHost()):
        pass
    again = checked(run_spec, files=setup.files, timings=tmp_path)[1]
    assert again.seconds == pytest.approx(60) and "about 60 s" in describe(problems, again)


def test_a_run_that_fails_or_goes_on_from_another_is_not_measured(files, tmp_path):
    setup = RunSetup(files=weights(files), timings=tmp_path)
    run = checked(files=setup.files)[1]
    with timed(spec(), setup, run, RecordingHost(), is_whole=False):
        pass
    with pytest.raises(KeyboardInterrupt), timed(spec(), setup, run, RecordingHost()):
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_float8_weights_are_refused_where_nothing_decodes_them(files, tmp_path, monkeypatch):
    fp8 = tmp_path / "base_fp8.safetensors"
    tensors = load_file(files.base)
    save_file(
        {key: tensor.to(torch.float8_e4m3fn) if tensor.ndim == 2 else tensor for key, tensor in tensors.items()}, fp8
    )
    float8 = ModelFiles(base=fp8, adapter=files.adapter)
    assert not checked(files=float8)[0].errors
    monkeypatch.setattr(checks, "decodes_float8", lambda device: False)
    assert_matches(
        r"base: base_fp8.safetensors or .* float8, which cpu cannot decode. Take GGUF or",
        checked(files=float8)[0].errors[0],
    )
    assert not checked(files=weights(files))[0].errors


def test_on_a_cpu_mapped_weights_are_no_memory_to_take(files):
    problems, run = checked(files=weights(files))
    window_bytes = run.windows[0] * 64 * 64 * 24
    assert run.ram_bytes == window_bytes and run.placement.weights == 0 and not problems.errors
    assert run.footprint.weights_bytes > 0
