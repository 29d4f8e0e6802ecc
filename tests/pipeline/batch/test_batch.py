"""A batch on one worker in this process: what is finished stays, what is lost goes on, what is wrong costs nothing."""

import json
from collections import deque

import pytest
from multitalk_pack.benchmarks.tiny_weights import WeightSizes, write_tiny
from multitalk_pack.pipeline.__main__ import ASSETS
from multitalk_pack.pipeline.batch import __main__ as command_line
from multitalk_pack.pipeline.batch.manifest import Manifest
from multitalk_pack.pipeline.batch.results import OutputFolder
from multitalk_pack.pipeline.batch.schedule import MAX_LOSSES, Batch, Lost
from multitalk_pack.pipeline.batch.worker import ClipWorker, WorkerHost
from multitalk_pack.pipeline.weights import build

SIZES = WeightSizes(width=128, layers=1, ffn=128, vae_width=2)


class PowerCut(Exception):
    """The end of a worker in the middle of a clip."""


class FailingHost(WorkerHost):
    """Dies at the first progress of the windows in `deaths`, one death each."""

    def __init__(self, deaths):
        super().__init__()
        self.deaths = deque(deaths)

    def report(self, progress, preview=None):
        super().report(progress, preview)
        if self.deaths and progress.window == self.deaths[0]:
            self.deaths.popleft()
            raise PowerCut


class LocalPool:
    """One worker in this process, which is replaced when it dies."""

    def __init__(self, output, deaths=(), counts=True):
        self.output, self.host, self.counts = output, FailingHost(deaths), counts
        self.worker, self.jobs, self.made = None, [], []

    def grow(self, num_jobs):
        if self.worker is None:
            self.worker = ClipWorker(self.output)
            self.worker._host = self.host

    def submit(self, job):
        if self.jobs:
            return None
        self.jobs.append(job)
        return "local"

    def wait(self, timeout_s):
        jobs, self.jobs = self.jobs, []
        return [(job, self._make(job)) for job in jobs]

    def _make(self, job):
        self.made.append(job.id)
        try:
            return self.worker.make(job)
        except PowerCut:
            self.worker = None
            return Lost("a power cut", self.counts)

    def progress(self):
        return {}


class SilentBoard:
    def __init__(self):
        self.failures = []

    def show(self, state, progress):
        assert 0 <= state.fraction(progress) <= 1

    def say(self, row):
        self.failures.append((row.id, row.remarks))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """The options of a small clip of two windows."""
    files = write_tiny(tmp_path_factory.mktemp("tiny"), sizes=SIZES)
    names = ("adapter", "vae", "text_encoder", "image_encoder", "audio_encoder")
    return {
        "image": str(ASSETS / "drawn_portrait.png"), "audio": str(ASSETS / "drawn_speech.wav"), "steps": 1,
        "size": "48x32", "num_frames": 13, "window_frames": 9, "motion_frames": 5, "base": str(files.transformer),
        **{name: str(getattr(files, name)) for name in names},
    }  # fmt: skip


@pytest.fixture
def run(tmp_path):
    """Runs a manifest of these lines; its state, pool and board."""
    output = OutputFolder(tmp_path / "videos")
    output.root.mkdir()

    def run(*lines, **options):
        path = tmp_path / "manifest.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        pool, board = LocalPool(output, **options), SilentBoard()
        return Batch(Manifest(path), output, pool, board).run(), pool, board

    run.output = output
    return run


def journal(output):
    return [json.loads(line) for line in (output.root / "journal.jsonl").read_text().splitlines()]


def sidecar(output, id_):
    return json.loads((output.root / f"{id_}.json").read_text())


def test_lines_become_videos_with_sidecars_once(run, tiny):
    lines = [{"id": "a"} | tiny, {"id": "b", "seed": 1} | tiny]
    state, pool, _ = run(*lines)
    facts = sidecar(run.output, "a")
    assert (state.num_made, pool.made) == (2, ["a", "b"]) and (run.output.root / facts["video"]).is_file()
    assert facts["num_windows"] == 2 and facts["first_window"] == 1 and facts["seconds"] > 0 < facts["memory_bytes"]
    state, pool, _ = run(*lines)
    assert (state.num_skipped, state.num_made, pool.made) == (2, 0, [])
    state, pool, _ = run(lines[0], lines[1] | {"seed": 2})
    assert (state.num_skipped, pool.made) == (1, ["b"]), "a changed line is made again"
    (run.output.root / "a.mp4").unlink()
    assert run(lines[0])[1].made == ["a"], "a sidecar without its video is no clip"


def test_models_stay_loaded_between_clips_of_the_same_files(run, tiny, monkeypatch):
    loads, load = [], build.load_transformer
    monkeypatch.setattr(build, "load_transformer", lambda *arguments: loads.append(1) or load(*arguments))
    wrong = {"id": "wrong", "image": "none.png"}
    state, _, board = run({"id": "a"} | tiny, tiny | wrong, {"id": "b"} | tiny)
    assert len(loads) == 1 and (state.num_made, state.num_failed) == (2, 1)
    assert board.failures == [
        ("wrong", f"image: There is no file {run.output.root.parent / 'none.png'}. Check the path.")
    ]


def test_a_lost_clip_goes_on_at_its_window_and_first(run, tiny):
    state, pool, _ = run({"id": "a"} | tiny, {"id": "b"} | tiny, deaths=[2])
    assert pool.made == ["a", "a", "b"] and state.num_made == 2
    assert sidecar(run.output, "a")["first_window"] == 2 and sidecar(run.output, "b")["first_window"] == 1
    assert state.rows[0].remarks == "went on at window 2 of 2"
    assert [entry["event"] for entry in journal(run.output)] == [
        "started",
        "lost",
        "started",
        "made",
        "started",
        "made",
    ]
    assert not list(run.output.unfinished.glob("*/*")), "finished clips leave no windows"


def test_a_clip_that_kills_its_workers_fails_and_the_others_are_made(run, tiny):
    state, pool, board = run({"id": "a"} | tiny, {"id": "b"} | tiny, deaths=[1] * MAX_LOSSES)
    assert pool.made == ["a"] * MAX_LOSSES + ["b"] and (state.num_made, state.num_failed) == (1, 1)
    assert "a power cut" in board.failures[0][1]


def test_losses_without_a_death_do_not_count(run, tiny):
    state, pool, _ = run({"id": "a"} | tiny, deaths=[1] * (MAX_LOSSES + 1), counts=False)
    assert len(pool.made) == MAX_LOSSES + 2 and state.num_made == 1


def test_lines_that_come_while_it_runs_are_made_too(run, tiny, tmp_path, monkeypatch):
    make = ClipWorker.make

    def make_and_append(self, job):
        if job.id == "a":
            with (tmp_path / "manifest.jsonl").open("a") as file:
                file.write(json.dumps({"id": "b"} | tiny))
        return make(self, job)

    monkeypatch.setattr(ClipWorker, "make", make_and_append)
    state, pool, _ = run({"id": "a"} | tiny)
    assert pool.made == ["a", "b"] and state.num_made == 2


def test_the_preflight_of_a_batch_counts_all_lines_and_makes_nothing(tiny, tmp_path, capsys):
    path = tmp_path / "manifest.jsonl"
    lines = [{"id": "a"} | tiny, tiny | {"steps": 3}, {"id": "c", "steps": "x"}]
    path.write_text("\n".join(map(json.dumps, lines)))
    assert command_line.main([str(path), "--output-folder", str(tmp_path / "videos"), "--dry-run"]) == 1
    text = capsys.readouterr().out
    assert "lines: 2 to make, 0 finished, 1 that cannot run" in text and "invalid int value" in text
    assert "forwards: at most 24" in text, "2 windows, 3 passes, 1 and 3 steps"
    assert not list((tmp_path / "videos").glob("**/*.mp4")) and "disk: about" in text


def test_without_ray_the_line_that_installs_it_is_said(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    (tmp_path / "manifest.jsonl").write_text('{"demo": true}')
    assert command_line.main([str(tmp_path / "manifest.jsonl"), "--output-folder", str(tmp_path / "videos")]) == 2
    assert 'pip install "ray>=' in capsys.readouterr().err


def test_a_damaged_sidecar_is_said(run, tiny):
    (run.output.root / "a.json").write_text("{")
    with pytest.raises(ValueError, match=r"a\.json is no sidecar"):
        run({"id": "a"} | tiny)
