"""Settings that do not go together, memory and disk that are not there: told before a run, with what would fit."""

import dataclasses
import re
import shutil
import time
from types import SimpleNamespace

import psutil
import pytest
import torch
from multitalk_pack.pipeline.acceleration.presets import AccelerationOptions, CacheKind
from multitalk_pack.pipeline.audio.dialogue import Arrangement, Speech
from multitalk_pack.pipeline.audio.waveform import Sound
from multitalk_pack.pipeline.conditioning.speakers import Place
from multitalk_pack.pipeline.config import (
    GenerationConfig,
    GuidanceConfig,
    Recipe,
    SamplingConfig,
    WindowConfig,
    WindowPlan,
)
from multitalk_pack.pipeline.errors import MultiTalkError, Problems
from multitalk_pack.pipeline.generation.store import run_key
from multitalk_pack.pipeline.memory.placement import GB, MemoryConfig, MemoryLimit
from multitalk_pack.pipeline.preflight.checks import Draft, check_places, check_voices, describe, inspect, measuring
from multitalk_pack.pipeline.weights.fit import WeightFiles
from support.run import RecordingHost


def assert_matches(message, text):
    with pytest.raises(MultiTalkError, match=message):
        raise MultiTalkError(text)


def audio(samples, rate_hz=16000):
    return Speech(Sound(torch.as_tensor(samples)[None].float(), rate_hz))


def draft(**changes):
    config = GenerationConfig(num_frames=0, allow_long=True, sampling=SamplingConfig(20))
    return dataclasses.replace(Draft(config, num_frames=200, target=(64, 64)), **changes)


def inspected(draft, free=8 * GB):
    problems, host = Problems(), RecordingHost()
    host.free_memory = lambda: free
    return problems, inspect(draft, problems, host)


def windows(**changes):
    return dataclasses.replace(draft().config, windows=WindowConfig(**changes))


DRAFTS = {
    "motion frames of the default window": (
        lambda: draft(config=windows(motion_frames=101)),
        "num_frames: A window of 97 frames cannot start with 101 motion frames. Hand on fewer"),
    "short audio for the published plan": (
        lambda: draft(config=windows(plan=WindowPlan.PUBLISHED), num_frames=60),
        r"num_frames: The published plan needs audio longer than a window of 81 frames.*exact plan"),
    "cache without steps": (
        lambda: draft(options=AccelerationOptions(CacheKind.TEA), config=GenerationConfig(sampling=SamplingConfig(4))),
        "acceleration: TeaCache finds nothing to reuse in 4 steps. Take at least 7"),
    "voices without places": (
        lambda: draft(num_voices=3, num_places=1), "speakers: 3 voices need as many places in the picture, got 1"),
    "a video to dub without InfiniteTalk": (
        lambda: draft(num_source_frames=9),
        "dub_video: A video of 9 frames is dubbed by InfiniteTalk's weights alone, got recipe multitalk. Set"),
    "odd size": (lambda: draft(target=(72, 64)), "size: 64x72 is not possible; both sides must be multiples of 16"),
}  # fmt: skip


@pytest.mark.parametrize("name", DRAFTS)
def test_options_that_do_not_go_together_are_told(name, no_tensor_is_read):
    make_draft, message = DRAFTS[name]
    problems, _ = inspected(make_draft())
    assert len(problems.errors) == 1, problems.errors
    assert_matches(message, problems.errors[0])


def test_features_of_another_encoder_are_told(files, no_tensor_is_read):
    problems, _ = inspected(draft(files=WeightFiles(files.base, files.adapter), audio_features=(12, 768)))
    assert_matches("audio_embeds: They have 12 layers of 768, the audio weights want 2 of 128", problems.errors[0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"prompt_channels": (64, 768)},
            "conditioning: The tokens of the prompt have 768 channels, .* with umt5-xxl",
        ),
        ({"image_channels": 1024}, "conditioning: The tokens of the image have 1024 channels, .* with clip_vision_h"),
    ],
)
def test_tokens_of_other_encoders_are_told(changes, message, files, no_tensor_is_read):
    problems, _ = inspected(draft(files=WeightFiles(files.base, files.adapter), **changes))
    assert len(problems.errors) == 1
    assert_matches(message, problems.errors[0])


@pytest.mark.parametrize("memory", [MemoryConfig(MemoryLimit.ALL), MemoryConfig(resident_blocks=2)])
def test_memory_that_is_not_there_is_told_with_the_setting_that_fits(memory, files, no_tensor_is_read):
    parts = dict(files=WeightFiles(files.base, files.adapter), target=(480, 832), memory=memory)
    plenty, roomy = inspected(draft(**parts), 64 * GB)
    assert plenty.errors == [] and roomy.placement.resident_blocks == 2
    problems, _ = inspected(draft(**parts), GB // 5)
    assert_matches(
        r"memory: .* takes about .* GB, 0.2 GB .* are free. Even the smallest video needs", problems.errors[0]
    )
    least = inspected(draft(**parts | dict(memory=MemoryConfig(resident_blocks=0))), 64 * GB)[1].placement.estimate
    problems, _ = inspected(draft(**parts), least - 1)
    assert_matches("window_frames to [0-9]+, or take a smaller size", problems.errors[0])
    frames = int(re.search("window_frames to ([0-9]+)", problems.errors[0])[1])
    assert WindowConfig(num_frames=frames).num_frames == frames  # which the long video options take
    problems, _ = inspected(draft(**parts | dict(num_frames=41)), least // 3)
    assert "window_frames" not in problems.errors[0]  # none that is shorter has room for the motion frames


def test_disk_and_kept_frames_that_do_not_fit_are_told(monkeypatch, tmp_path):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10**6))
    problems, _ = inspected(draft(runs=tmp_path / "new" / "runs"))
    assert_matches(r"resume: Finished windows need up to 0.01 GB in .* turn resuming off", problems.errors[0])
    monkeypatch.undo()
    problems, _ = inspected(draft(keeps_frames=True, num_frames=90000, target=(960, 960)))
    assert_matches(
        "keep_frames: 90000 frames take .* Turn keep_frames off and take the video output", problems.errors[0]
    )
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=10**6))
    problems, _ = inspected(draft())
    assert_matches("window_frames: A window of [0-9]+ frames takes .* GB are free. Take shorter", problems.errors[0])


def test_windows_that_are_kept_already_need_no_more_room(monkeypatch, tmp_path):
    needed = inspected(draft(runs=tmp_path))[1].disk_bytes
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=needed // 2))
    assert any("Finished windows" in problem for problem in inspected(draft(runs=tmp_path))[0].errors)
    kept = tmp_path / run_key("half of it")
    kept.mkdir()
    (kept / "0000.mkv").write_bytes(bytes(needed - needed // 2))
    assert not inspected(draft(runs=tmp_path))[0].errors


def test_a_video_longer_than_its_embeds_is_told():
    notes = inspected(draft(num_heard=38, num_frames=145))[0].notes
    assert any("cover 38 frames, the video has 145" in note for note in notes)
    assert not inspected(draft(num_heard=140, num_frames=145))[0].notes  # what follows is the tail of silence


def test_disk_is_needed_only_where_windows_are_kept(tmp_path):
    assert "disk: up to" in describe(*inspected(draft(runs=tmp_path)))
    assert "disk:" not in describe(*inspected(draft()))


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
    check_places(places, (60, 80), (64, 64), problems)
    assert_matches(f"speakers: .*{message}", problems.errors[0])


def test_what_runs_but_perhaps_not_as_meant_is_noted(files):
    problems = Problems()
    check_voices([audio(torch.zeros(16000)), audio(torch.ones(100))], Arrangement.PARALLEL, 250, 25, problems)
    assert not problems.errors
    for text in ("Voice 1 is silent", "Voice 2 lasts 0.01 s", "voices end after 1.0 s, the video after 10.0 s"):
        assert any(text in note for note in problems.notes), text
    lora_path = files.folder / "lightx2v_rank64.safetensors"
    shutil.copy(files / "lora.safetensors", lora_path)
    few = WeightFiles(files.base, files.adapter, ((lora_path, 1.0),))
    assert any("made for few steps; 20 cost time" in note for note in inspected(draft(files=few))[0].notes)
    slow = draft(files=WeightFiles(files.base, files.adapter), config=GenerationConfig(sampling=SamplingConfig(4)))
    assert any("blurred video" in note for note in inspected(slow)[0].notes)
    single = files.folder / "infinitetalk-single.safetensors"
    shutil.copy(files.adapter, single)
    dubbed = dataclasses.replace(draft(num_source_frames=9), config=windows(recipe=Recipe.INFINITETALK))
    assert not inspected(dubbed)[0].errors
    assert any(
        "2 places, one voice: the places are not used" in note for note in inspected(draft(num_places=2))[0].notes
    )
    two = draft(files=WeightFiles(files.base, single), num_voices=2, num_places=2)
    assert "infinitetalk-single.safetensors hears one speaker, got 2. Take MultiTalk's weights." in (
        inspected(two)[0].notes
    )


def test_the_estimate_counts_windows_and_forwards_and_learns_the_time(files, tmp_path):
    parts = draft(files=WeightFiles(files.base, files.adapter), speeds=tmp_path)
    problems, found = inspected(parts)
    assert found.windows == (89, 89, 89) or sum(found.windows) >= 200
    assert found.forwards == len(found.windows) * 20 * 3 and found.seconds is None
    plain = dataclasses.replace(parts, config=dataclasses.replace(parts.config, guidance=GuidanceConfig(1.0, 1.0)))
    assert inspected(plain)[1].forwards == len(found.windows) * 20
    with measuring(parts, found, RecordingHost()):
        time.sleep(0.05)
    again = inspected(parts)[1]
    assert 0.04 < again.seconds < 2 and "about 0 s" in describe(problems, again)


def test_a_run_that_fails_or_goes_on_from_another_is_not_measured(files, tmp_path):
    parts = draft(files=WeightFiles(files.base, files.adapter), speeds=tmp_path)
    found = inspected(parts)[1]
    with measuring(parts, found, RecordingHost(), is_whole=False):
        pass
    with pytest.raises(KeyboardInterrupt), measuring(parts, found, RecordingHost()):
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []
