"""The stored speeds of this machine: kept by runs that end well, read with care."""

import json
import logging
import time

import pytest
import torch
from multitalk_pack.pipeline.acceleration.presets import AccelerationOptions, CacheKind
from multitalk_pack.pipeline.memory.placement import Footprint
from multitalk_pack.pipeline.preflight.timings import FILE, Speeds, kind_of_run


def stored(folder, content):
    (folder / FILE).write_text(content if isinstance(content, str) else json.dumps(content))
    return Speeds(folder)


def test_a_measured_run_tells_the_next_ones_time(tmp_path):
    speeds = Speeds(tmp_path / "new" / "folder")
    assert speeds.seconds("gpu", 100) is None
    with speeds.measure("gpu", 100, num_forwards=5):
        time.sleep(0.05)
    assert 0.01 <= speeds.seconds("gpu", 100) < 1 and speeds.seconds("other", 100) is None
    assert [file.name for file in speeds.path.parent.iterdir()] == [FILE]


def test_the_nearest_number_of_tokens_decides_in_proportion(tmp_path):
    speeds = stored(tmp_path, {"gpu": {"1000": 1.0, "32000": 64.0}})
    assert speeds.seconds("gpu", 2000) == 2.0
    assert speeds.seconds("gpu", 16000) == 32.0


def test_a_run_that_fails_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt), Speeds(tmp_path).measure("gpu", 1, 1):
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "content",
    ["{broken", "[]", {"gpu": 3}, {"gpu": {"many": 1}}, {"gpu": {"0": 1}}, {"gpu": {"5": -1}}, {"gpu": {"5": None}},
     {"gpu": {"5": float("nan")}}, "[" * 100_000],
)  # fmt: skip
def test_a_damaged_file_is_told_and_written_anew(content, tmp_path, caplog):
    speeds = stored(tmp_path, content)
    with caplog.at_level(logging.WARNING):
        assert speeds.seconds("gpu", 5) is None
    assert "is written anew" in caplog.text
    with speeds.measure("gpu", 5, 1):
        pass
    assert speeds.seconds("gpu", 5) > 0


def test_a_place_that_cannot_be_written_does_not_cost_the_run(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    with Speeds(tmp_path / "file").measure("gpu", 5, 1):
        pass
    assert "is not kept" in caplog.text


def test_what_changes_the_time_changes_the_kind():
    cpu, footprint, plain = torch.device("cpu"), Footprint(2, 100, 10, 64), AccelerationOptions()
    kinds = {
        kind_of_run(cpu, footprint, plain, False),
        kind_of_run(cpu, footprint, plain, True),
        kind_of_run(cpu, footprint, AccelerationOptions(CacheKind.EASY), False),
        kind_of_run(cpu, footprint, AccelerationOptions(compile=True), False),
        kind_of_run(cpu, Footprint(2, 50, 10, 64), plain, False),
    }
    assert len(kinds) == 5
