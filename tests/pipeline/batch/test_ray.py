"""A batch on a real Ray: workers and the driver are killed, and every clip is made once.

Ray is started on this machine; RAY_ADDRESS names a cluster to run on instead.
"""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from multitalk_pack.benchmarks.tiny_weights import WeightSizes, write_tiny
from multitalk_pack.pipeline.__main__ import ASSETS
from support.pack import PACK

SIZES = WeightSizes(width=128, layers=2, ffn=256, vae_width=2)
NUM_CLIPS, NUM_WORKERS = 11, 3
TIMEOUT_S = 900


@pytest.fixture(scope="module", autouse=True)
def ray():
    return pytest.importorskip("ray", reason="Ray is not installed: pip install -r requirements-batch.txt")


@pytest.fixture
def folder(tmp_path):
    """A manifest of clips of three windows and a wrong line in the middle."""
    files = write_tiny(tmp_path / "weights", sizes=SIZES)
    names = ("adapter", "vae", "text_encoder", "image_encoder", "audio_encoder")
    clip = {
        "image": str(ASSETS / "drawn_portrait.png"), "audio": [str(ASSETS / "drawn_speech.wav")], "steps": 60,
        "size": "96x96", "num_frames": 17, "window_frames": 9, "motion_frames": 5,
        "base": os.path.relpath(files.transformer, tmp_path),
        **{name: os.path.relpath(getattr(files, name), tmp_path) for name in names},
    }  # fmt: skip
    lines = [{"id": f"clip {number}", "seed": number, **clip} for number in range(NUM_CLIPS)]
    lines.insert(5, {"id": "wrong", **clip, "image": "nobody.png"})
    (tmp_path / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path


class Driver:
    """A batch in a process of its own, and its journal."""

    def __init__(self, folder):
        self.videos = folder / "videos"
        address = os.environ.get("RAY_ADDRESS")
        command = [
            sys.executable, "-m", "pipeline.batch", folder / "manifest.jsonl", "--output-folder", self.videos,
            "--workers", str(NUM_WORKERS), *(["--address", address] if address else []),
        ]  # fmt: skip
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        self.process = subprocess.Popen(command, cwd=PACK, **pipes)

    def events(self, kind):
        path = self.videos / "journal.jsonl"
        entries = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        return [entry for entry in entries if entry["event"] == kind]

    def wait_for(self, condition):
        """The first true value of `condition`."""
        end_s = time.monotonic() + TIMEOUT_S
        while not (value := condition()):
            assert self.process.poll() is None, self.process.communicate()[0]
            assert time.monotonic() < end_s, self.events("started")
            time.sleep(0.1)
        return value


@pytest.mark.long
def test_every_clip_is_made_once_whoever_is_killed(folder):
    driver = Driver(folder)
    in_second = driver.wait_for(lambda: [entry for entry in driver.events("window") if entry["window"] == 2])
    victim = in_second[0]["id"]
    (start,) = [entry for entry in driver.events("started") if entry["id"] == victim]
    os.kill(int(start["worker"].rpartition(":")[2]), signal.SIGKILL)
    driver.wait_for(lambda: victim in [entry["id"] for entry in driver.events("made")])
    driver.wait_for(lambda: len(driver.events("made")) >= 4)
    driver.process.kill()
    driver.process.wait()
    assert [entry["id"] for entry in driver.events("lost")] == [victim]
    before = {path: path.stat().st_mtime_ns for path in driver.videos.glob("*.mp4")}
    assert 4 <= len(before) < NUM_CLIPS, "the driver was killed in the middle"

    driver = Driver(folder)
    text, _ = driver.process.communicate(timeout=TIMEOUT_S)
    assert driver.process.returncode == 1, text
    assert f"image: There is no file {folder / 'nobody.png'}. Check the path." in text and "1 failed" in text
    videos = {path: path.stat().st_mtime_ns for path in driver.videos.glob("*.mp4")}
    assert len(videos) == NUM_CLIPS and before.items() <= videos.items()
    made = [entry["id"] for entry in driver.events("made")]
    assert len(made) == len(set(made)), "a clip was made twice"
    sidecars = {path.stem: json.loads(path.read_text()) for path in driver.videos.glob("*.json")}
    assert len(sidecars) == NUM_CLIPS and sidecars[victim]["first_window"] >= 2
    assert len({sidecar["worker"] for sidecar in sidecars.values()}) >= NUM_WORKERS
    assert not list((driver.videos / "unfinished").glob("*/*")), "finished clips leave no windows"
