"""An interrupted run goes on where it stopped and gives the same bytes."""

import dataclasses
import os
import resource
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from multitalk_pack.pipeline.acceleration.presets import AccelerationOptions
from multitalk_pack.pipeline.generate import generate, open_store
from multitalk_pack.pipeline.generation.store import WindowStore, fingerprint, kept_bytes, run_key
from multitalk_pack.pipeline.generation.windows import plan_windows
from multitalk_pack.pipeline.preflight.estimate import estimate
from support import run
from support.pack import PACK


@pytest.fixture(scope="module")
def model():
    return run.model()


def frames_with(store, model, host=None):
    audio, conditioning = run.audio(model, 21), run.conditioning(model)
    windows = generate(model, audio, conditioning, run.config(), host or run.RecordingHost(), store=store)
    return torch.cat(list(windows), 1)


def store_in(folder, model, config=None):
    return open_store(folder, model, run.audio(model, 21), run.conditioning(model), config or run.config())


def test_an_interrupted_run_repeats_no_finished_window_and_gives_the_same_bytes(model, tmp_path, monkeypatch):
    expected = frames_with(store_in(tmp_path / "whole", model), model)
    per_window = run.config().sampling.steps * 3
    forward, calls = model.forward, []
    monkeypatch.setattr(model, "forward", lambda *given: calls.append(given) or forward(*given))
    with pytest.raises(KeyboardInterrupt):
        frames_with(store_in(tmp_path / "cut", model), model, run.RecordingHost(cancel_after=35))
    finished = len(list((tmp_path / "cut").rglob("*.safetensors")))
    assert 1 <= finished < 4
    calls.clear()
    assert torch.equal(frames_with(store_in(tmp_path / "cut", model), model), expected)
    assert len(calls) == (4 - finished) * per_window


KILLED = """
import sys; sys.path.insert(0, {tests!r}); import conftest
from multitalk_pack.pipeline.generate import generate, open_store
from support import run
import os, signal, torch
model = run.model(); audio = run.audio(model, 21); conditioning = run.conditioning(model)
store = open_store({folder!r}, model, audio, conditioning, run.config())
for number, _ in enumerate(generate(model, audio, conditioning, run.config(), run.RecordingHost(), store=store)):
    if number == 1:
        os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_process_leaves_what_the_next_one_goes_on_from(model, tmp_path, monkeypatch):
    tests = str(PACK / "tests")
    script = KILLED.format(tests=tests, folder=str(tmp_path / "killed"))
    killed = subprocess.run(
        [sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": tests}, capture_output=True
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    expected = frames_with(store_in(tmp_path / "whole", model), model)
    forward, calls = model.forward, []
    monkeypatch.setattr(model, "forward", lambda *given: calls.append(given) or forward(*given))
    assert torch.equal(frames_with(store_in(tmp_path / "killed", model), model), expected)
    assert len(calls) == 2 * run.config().sampling.steps * 3


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
        seen = dataclasses.replace(run.conditioning(model), vae=SimpleNamespace(model=run.vae(seed).model))
        return open_store(tmp_path, model, run.audio(model, 9), seen, run.config()).folder

    assert store(1) == store(1) != store(2)


def test_a_changed_weight_changes_the_fingerprint(model):
    before = fingerprint(model)
    with torch.no_grad():
        model.proj_out.bias += 1
        changed = fingerprint(model)
        model.proj_out.bias -= 1
    assert changed != before


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9, 0.99])
def test_a_window_that_was_cut_off_is_made_again(tmp_path, share):
    store = WindowStore(tmp_path, run_key("cut"))
    store.save(0, run.random((3, 9, 32, 48), 1).clamp(-1, 1), 5)
    file = store.folder / "0000.mkv"
    file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])
    assert store.load(0) is None


@pytest.mark.parametrize("name", ["0000.mkv", "0000.safetensors"])
def test_a_window_with_changed_bytes_is_made_again_or_the_same_for_all_that(tmp_path, name):
    store = WindowStore(tmp_path, run_key("changed"))
    kept = store.save(0, run.random((3, 9, 32, 48), 1).clamp(-1, 1), 5)
    file = store.folder / name
    whole, refused = file.read_bytes(), 0
    for place in range(0, len(whole), len(whole) // 40):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        again = store.load(0)
        refused += again is None
        assert again is None or (torch.equal(again.frames, kept.frames) and torch.equal(again.motion, kept.motion))
    assert refused > 30


def test_what_a_full_disk_refused_leaves_nothing_behind(tmp_path, caplog):
    store = WindowStore(tmp_path, run_key("full"))
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, unlimited[1]))
        store.save(0, run.random((3, 9, 64, 96), 1).clamp(-1, 1), 5)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    assert "The run goes on" in caplog.text
    assert list(store.folder.iterdir()) == []


def test_kept_windows_take_no_more_than_was_told(tmp_path):
    config = run.config(33)
    windows = plan_windows(33, config.windows, [33])
    told = estimate(config, AccelerationOptions(), windows, (64, 96)).disk_bytes
    store = WindowStore(tmp_path, run_key("told"))
    for window in windows:
        picture = 0.02 * run.random((3, window.num_frames, 64, 96), window.index)  # as noisy as a photograph
        store.save(window.index, picture.clamp(-1, 1), config.windows.overlap)
    assert told / 2 < kept_bytes(tmp_path) < told


def test_disk_use_is_bounded_by_dropping_the_oldest_run(tmp_path):
    frames = run.random((3, 9, 32, 48), 1).clamp(-1, 1)
    old, newer, newest = (run_key(name) for name in ("old", "newer", "newest"))
    for age, key in enumerate((old, newer)):
        store = WindowStore(tmp_path, key)
        store.save(0, frames, 5)
        os.utime(store.folder, (1000 + age, 1000 + age))
    size = sum(file.stat().st_size for file in (tmp_path / newer).iterdir())
    WindowStore(tmp_path, newest, limit_bytes=size)
    assert {folder.name for folder in tmp_path.iterdir()} == {newer, newest}


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
    WindowStore(tmp_path, run_key("mine"), limit_bytes=1).save(0, run.random((3, 9, 32, 48), 1), 5)
    assert all((tmp_path / folder / file).exists() for folder, file in foreign.items())
    assert (elsewhere / "0000.mkv").exists()


def test_a_window_comes_back_as_it_was_handed_on(tmp_path):
    frames = run.random((3, 9, 32, 48), 1).clamp(-1, 1)
    store = WindowStore(tmp_path, "key")
    handed_on = store.save(0, frames, 5)
    again = store.load(0)
    assert torch.equal(again.frames, handed_on.frames) and torch.equal(again.motion, frames[:, -5:])
    assert (again.frames - frames).abs().max() <= 1 / 255 + 1e-6
    assert store.load(1) is None
