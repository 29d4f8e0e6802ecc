"""Signs of life: a process that gives none is ended, one that does is left alone."""

import subprocess
import sys
import time

import pytest
from multitalk_pack.pipeline.parallel import heartbeat
from multitalk_pack.pipeline.parallel.heartbeat import HeartbeatMonitor

WITHIN_S = 10  # in which a stopped rank ends all
LIMIT_S = 60  # on a busy machine


@pytest.fixture
def ranks(tmp_path, monkeypatch):
    """Two sleeping processes with a heartbeat file each."""
    monkeypatch.setattr(heartbeat, "INTERVAL_S", 0.05)
    monkeypatch.setattr(heartbeat, "SILENCE_S", 1.0)
    processes = [subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) for _ in range(2)]
    for rank, process in enumerate(processes):
        (tmp_path / f"heartbeat.{rank}").write_text(str(process.pid))
    yield processes
    for rank, process in enumerate(processes):
        (tmp_path / f"heartbeat.{rank}").unlink()
        process.kill()
        process.wait()


def test_the_silent_rank_is_ended_and_the_other_is_not(ranks, tmp_path):
    monitor, end_s = HeartbeatMonitor(tmp_path, 2), time.monotonic() + LIMIT_S
    monitor.start()
    while ranks[1].poll() is None:
        assert time.monotonic() < end_s, "nobody ended the silent rank"
        (tmp_path / "heartbeat.0").touch()
        time.sleep(0.02)
    assert monitor.silent_ranks == [1] and ranks[0].poll() is None


def test_a_rank_that_has_stopped_is_found_in_time():
    assert heartbeat.SILENCE_S + 2 * heartbeat.INTERVAL_S < WITHIN_S
    assert heartbeat.INTERVAL_S * 10 <= heartbeat.SILENCE_S, "one late sign is no silence"
