"""An interrupted run goes on where it stopped and gives the same bytes."""

import dataclasses
import os
import resource
import signal
import tempfile
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from multitalk_pack.pipeline.config import Recipe
from multitalk_pack.pipeline.errors import ConfigError
from multitalk_pack.pipeline.generation.run_spec import make_run_spec
from multitalk_pack.pipeline.generation.store import NoStore, RunKeys, WindowStore, fingerprint, kept_bytes, run_key
from multitalk_pack.pipeline.media.video import check_video_path
from multitalk_pack.pipeline.preflight.estimate import estimate
from support import forked, run
from support.media import hum, write_sound


@pytest.fixture(scope="module")
def model():
    return run.model()


def frames_with(store, model, host=None):
    audio, conditioning = run.audio(model, 21), run.conditioning(model)
    return torch.cat(list(run.generate(model, audio, conditioning, host=host, store=store)), 1)


def store_in(folder, model, config=None):
    return run.open_store(folder, model, run.audio(model, 21), run.conditioning(model), config)


def store_of(root, name, **options):
    """A store of one window, by the run's name."""
    return WindowStore(root, RunKeys.of((name,), ["a prompt"]), **options)


SHAPE = (9, 32, 48)


def test_an_interrupted_run_repeats_no_finished_window_and_gives_the_same_bytes(model, tmp_path, monkeypatch):
    expected = frames_with(store_in(tmp_path / "whole", model), model)
    per_window = run.config().steps * 3
    forward, calls = model.forward, []
    monkeypatch.setattr(model, "forward", lambda *args: calls.append(args) or forward(*args))
    with pytest.raises(KeyboardInterrupt):
        frames_with(store_in(tmp_path / "cut", model), model, run.RecordingHost(cancel_after=35))
    finished = len(list((tmp_path / "cut").rglob("*.safetensors")))
    assert 1 <= finished < 4
    calls.clear()
    assert torch.equal(frames_with(store_in(tmp_path / "cut", model), model), expected)
    assert len(calls) == (4 - finished) * per_window


def test_a_killed_process_leaves_what_the_next_one_goes_on_from(model, tmp_path, monkeypatch):
    def run_to_the_second_window():
        store = store_in(tmp_path / "killed", model)
        for number, _ in enumerate(run.generate(model, run.audio(model, 21), run.conditioning(model), store=store)):
            if number == 1:
                os.kill(os.getpid(), signal.SIGKILL)

    assert forked.is_killed(run_to_the_second_window)
    expected = frames_with(store_in(tmp_path / "whole", model), model)
    forward, calls = model.forward, []
    monkeypatch.setattr(model, "forward", lambda *args: calls.append(args) or forward(*args))
    assert torch.equal(frames_with(store_in(tmp_path / "killed", model), model), expected)
    assert len(calls) == 2 * run.config().steps * 3


def test_other_inputs_are_another_run(model):
    audio = run.audio(model, 21)
    key = run_key(model, audio.features, run.config(), ("a prompt",))
    assert run_key(model, audio.features, run.config(), ("a prompt",)) == key
    others = [
        run_key(run.model(num_layers=1), audio.features, run.config(), ("a prompt",)),
        run_key(model, audio.features + 1, run.config(), ("a prompt",)),
        run_key(model, audio.features, run.config(seed=1), ("a prompt",)),
        run_key(model, audio.features, run.config(), ("another",)),
    ]
    assert len({key, *others}) == 5


def test_another_programs_vae_is_told_from_its_like(model, tmp_path):
    def store(seed):
        conditioning = dataclasses.replace(run.conditioning(model), vae=SimpleNamespace(model=run.vae(seed).model))
        return run.open_store(tmp_path, model, run.audio(model, 9), conditioning).folder

    assert store(1) == store(1) != store(2)


def test_a_changed_weight_changes_the_fingerprint(model):
    before = fingerprint(model)
    with torch.no_grad():
        model.proj_out.bias += 1
        third = fingerprint(model)
        model.proj_out.bias -= 1
    assert third != before


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9, 0.99])
def test_a_window_that_was_cut_off_is_made_again(tmp_path, share):
    store = store_of(tmp_path, "cut")
    store.save(0, run.random((3, 9, 32, 48), 1).clamp(-1, 1), 5)
    file = store.folder / "0000.mkv"
    file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])
    assert store.load(0, SHAPE) is None


@pytest.mark.parametrize("name", ["0000.mkv", "0000.safetensors"])
def test_a_window_with_changed_bytes_is_made_again_or_the_same_for_all_that(tmp_path, name):
    store = store_of(tmp_path, "changed")
    saved = store.save(0, run.random((3, 9, 32, 48), 1).clamp(-1, 1), 5)
    file = store.folder / name
    whole, refusals = file.read_bytes(), 0
    for place in range(0, len(whole), len(whole) // 40):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        again = store.load(0, SHAPE)
        refusals += again is None
        assert again is None or (torch.equal(again.frames, saved.frames) and torch.equal(again.motion, saved.motion))
    assert refusals > 30


def test_what_a_full_disk_refused_leaves_nothing_behind(tmp_path, caplog):
    store = store_of(tmp_path, "full")
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, unlimited[1]))
        store.save(0, run.random((3, 9, 64, 96), 1).clamp(-1, 1), 5)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    assert "The run goes on" in caplog.text
    assert list(store.folder.iterdir()) == []


def test_kept_windows_take_no_more_than_was_told(tmp_path):
    spec = make_run_spec(run.config(33), Recipe.MULTITALK, (64, 96), 33)
    expected = estimate(spec).disk_bytes
    store = WindowStore(tmp_path, RunKeys.of(("told",), ["a prompt"] * len(spec.windows)))
    for window in spec.windows:
        picture = 0.02 * run.random((3, window.num_frames, 64, 96), window.index)  # as noisy as a photograph
        store.save(window.index, picture.clamp(-1, 1), spec.windows_config.motion_frames)
    assert expected / 2 < kept_bytes(tmp_path) < expected


def test_disk_use_is_bounded_by_dropping_the_oldest_run(tmp_path):
    frames = run.random((3, 9, 32, 48), 1).clamp(-1, 1)
    old, newer, newest = (RunKeys.of((name,), ["a prompt"]) for name in ("old", "newer", "newest"))
    for age, keys in enumerate((old, newer)):
        store = WindowStore(tmp_path, keys)
        store.save(0, frames, 5)
        os.utime(store.folder, (1000 + age, 1000 + age))
    size = sum(file.stat().st_size for file in (tmp_path / newer.run).iterdir())
    WindowStore(tmp_path, newest, limit_bytes=size)
    assert {folder.name for folder in tmp_path.iterdir()} == {newer.run, newest.run}


def test_what_else_lies_beside_the_runs_is_never_removed(tmp_path):
    foreign = {"my_models": "wan.safetensors", run_key("a cache"): "0000.png", "0000.mkv": "0000.mkv"}
    for folder, file in foreign.items():
        (tmp_path / folder).mkdir()
        (tmp_path / folder / file).write_bytes(bytes(1000))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "0000.mkv").write_bytes(bytes(1000))
    (tmp_path / run_key("a link")).symlink_to(elsewhere, target_is_directory=True)
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
    store_of(tmp_path, "mine", limit_bytes=1).save(0, run.random((3, 9, 32, 48), 1), 5)
    assert all((tmp_path / folder / file).exists() for folder, file in foreign.items())
    assert (elsewhere / "0000.mkv").exists()


def test_a_window_comes_back_as_it_was_handed_on(tmp_path):
    frames = run.random((3, 9, 32, 48), 1).clamp(-1, 1)
    store = store_of(tmp_path, "key")
    handed_on = store.save(0, frames, 5)
    again = store.load(0, SHAPE)
    assert torch.equal(again.frames, handed_on.frames) and torch.equal(again.motion, frames[:, -5:])
    assert (again.frames - frames).abs().max() <= 1 / 255 + 1e-6


def test_a_window_that_was_never_made_is_not_there(tmp_path):
    store = WindowStore(tmp_path, RunKeys.of(("two",), ["a prompt"] * 2))
    store.save(0, run.random((3, *SHAPE), 1).clamp(-1, 1), 5)
    assert store.load(0, SHAPE) is not None and store.load(1, SHAPE) is None


def test_what_is_no_window_under_a_windows_name_is_made_again(tmp_path, caplog):
    """Neither does it open another file, nor end the run, nor keep it waiting."""
    store = store_of(tmp_path, "mine")
    frames = run.random((3, *SHAPE), 1).clamp(-1, 1)
    store.save(0, frames, 5)
    video, motion = store.folder / "0000.mkv", store.folder / "0000.safetensors"
    video.rename(tmp_path / "elsewhere.mkv")
    video.write_text(f"ffconcat version 1.0\nfile {tmp_path / 'elsewhere.mkv'}\n")
    assert store.load(0, SHAPE) is None
    write_sound(tmp_path / "sound.mka", hum(1, 8000, 1), "flac", "mono").rename(video)
    assert store.load(0, SHAPE) is None
    video.unlink()
    video.mkdir()
    assert store.load(0, SHAPE) is None
    video.rmdir()
    motion.unlink()
    os.mkfifo(motion)
    assert store.load(0, SHAPE) is None and caplog.text.count("is damaged") == 4


def test_the_part_of_a_video_has_a_name_that_nothing_has_yet(tmp_path):
    mine = tmp_path / "talk.part.mp4"
    mine.write_text("my own")
    assert NoStore().part(tmp_path / "talk.mp4") == tmp_path / "talk.part-2.mp4"
    (tmp_path / "talk.part-2.mp4").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "talk.part-3.mp4")
    part = NoStore().part(tmp_path / "talk.mp4")
    assert part == tmp_path / "talk.part-4.mp4" and mine.read_text() == "my own"


@pytest.mark.parametrize("letter", ["a", "ж", "話", "🙂"])
def test_the_part_of_the_longest_name_can_be_written(tmp_path, letter):
    longest = tmp_path / (letter * (251 // len(letter.encode())) + ".mp4")
    check_video_path(longest)
    NoStore().part(longest).touch()


def test_files_that_are_exchanged_or_another_runs_are_no_windows(tmp_path, caplog):
    keys = RunKeys.of(("mine",), ["a prompt"] * 2)
    store = WindowStore(tmp_path, keys)
    for index in range(2):
        store.save(index, run.random((3, *SHAPE), index).clamp(-1, 1), 5)
    for ending in ("mkv", "safetensors"):
        first, second = (store.folder / f"{index:04d}.{ending}" for index in range(2))
        first.rename(store.folder / "aside")
        second.rename(first)
        (store.folder / "aside").rename(second)
    assert store.load(0, SHAPE) is None and store.load(1, SHAPE) is None
    other = WindowStore(tmp_path, RunKeys.of(("another seed",), ["a prompt"]))
    other.save(0, run.random((3, *SHAPE), 3).clamp(-1, 1), 5)
    store.clear()
    for file in other.folder.iterdir():
        file.rename(store.folder / file.name)
    assert store.load(0, SHAPE) is None


def test_a_window_of_another_size_is_no_window_of_the_run(tmp_path):
    store = store_of(tmp_path, "short")
    store.save(0, run.random((3, 5, 32, 48), 1).clamp(-1, 1), 5)
    assert store.load(0, SHAPE) is None and store.load(0, (5, 32, 48)) is not None


def test_another_prompt_for_a_later_window_leaves_the_earlier_ones(model, tmp_path, monkeypatch):
    audio, conditioning = run.audio(model, 21), run.conditioning(model)
    prompts = [run.random((5, model.config.text_dim), seed) for seed in range(5)]

    def frames(*numbers):
        third = dataclasses.replace(conditioning, prompt_embeds=tuple(prompts[number] for number in numbers))
        store = run.open_store(tmp_path, model, audio, third)
        return torch.cat(list(run.generate(model, audio, third, store=store)), 1)

    first = frames(0, 1, 2, 3)
    calls, forward = [], model.forward
    monkeypatch.setattr(model, "forward", lambda *args: calls.append(args) or forward(*args))
    assert torch.equal(frames(0, 1, 2, 3, 4), first) and not calls, "a fifth prompt is for no window"
    third = frames(0, 1, 4, 3)
    assert len(calls) == 2 * run.config().steps * 3, "the third window, and the fourth that goes on from it"
    assert not torch.equal(third, first) and torch.equal(third[:, :13], first[:, :13])


@contextmanager
def without_rights():
    """This process as a user who owns nothing, where it is root's."""
    is_root = os.geteuid() == 0
    if is_root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if is_root:
            os.seteuid(0)


def test_a_folder_that_may_not_be_written_is_refused_in_a_sentence_and_a_file_too(tmp_path):
    with tempfile.TemporaryDirectory() as root:  # pytest's own folder lets nobody else pass
        os.chmod(root, 0o555)
        with without_rights():
            with pytest.raises(ConfigError, match=r"runs cannot be used \(Permission denied\).*turn resuming off"):
                store_of(Path(root) / "runs", "mine")
            with pytest.raises(ConfigError, match=r"talk\.mp4 cannot be written \(Permission denied\)"):
                check_video_path(Path(root) / "talk.mp4")


def test_a_run_goes_on_when_its_folder_may_no_longer_be_written(caplog):
    frames = run.random((3, *SHAPE), 1).clamp(-1, 1)
    with tempfile.TemporaryDirectory() as root:
        store = store_of(Path(root), "mine")
        os.chmod(root, 0o555)
        os.chmod(store.folder, 0o555)
        with without_rights():
            finished = store.save(0, frames, 5)
            assert store.load(0, SHAPE) is None
        os.chmod(root, 0o755)
        os.chmod(store.folder, 0o755)
    assert (
        finished.frames - frames
    ).abs().max() <= 1 / 255 + 1e-6 and ": Permission denied. The run goes on." in caplog.text


@pytest.mark.parametrize("obstacle", ["a file", "a dangling link"])
def test_a_folder_that_cannot_be_used_is_refused_in_a_sentence(tmp_path, obstacle):
    root = tmp_path / "runs"
    if obstacle == "a file":
        root.write_text("")
    else:
        root.symlink_to(tmp_path / "gone" / "far")
    with pytest.raises(ConfigError, match=r"folder of unfinished runs .*runs cannot be used.*turn resuming off"):
        store_of(root, "mine")
