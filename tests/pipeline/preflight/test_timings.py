"""The stored timings of this machine: kept by runs that end well, read with care."""

import json
import logging
from types import SimpleNamespace

import pytest
import torch
from multitalk_pack.pipeline.acceleration.caches import CacheKind
from multitalk_pack.pipeline.acceleration.compilation import Compile
from multitalk_pack.pipeline.acceleration.presets import AccelerationOptions
from multitalk_pack.pipeline.memory.placement import Footprint
from multitalk_pack.pipeline.preflight import timings
from multitalk_pack.pipeline.preflight.timings import FILE, Timings, run_kind


def stored(folder, content):
    (folder / FILE).write_text(content if isinstance(content, str) else json.dumps(content))
    return Timings(folder)


def test_a_measured_run_tells_the_next_ones_time(tmp_path, monkeypatch):
    monkeypatch.setattr(timings, "time", SimpleNamespace(monotonic=iter((7.0, 17.0)).__next__))
    store = Timings(tmp_path / "new" / "folder")
    assert store.seconds("gpu", 100) is None
    with store.measure("gpu", 100, num_forwards=5):
        pass
    assert store.seconds("gpu", 100) == 2.0 and store.seconds("other", 100) is None
    assert [file.name for file in store.path.parent.iterdir()] == [FILE]


def test_the_nearest_number_of_tokens_decides_in_proportion(tmp_path):
    timings = stored(tmp_path, {"gpu": {"1000": 1.0, "32000": 64.0}})
    assert timings.seconds("gpu", 2000) == 2.0
    assert timings.seconds("gpu", 16000) == 32.0


def test_a_run_that_fails_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt), Timings(tmp_path).measure("gpu", 1, 1):
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "content",
    ["{broken", "[]", {"gpu": 3}, {"gpu": {"many": 1}}, {"gpu": {"0": 1}}, {"gpu": {"5": -1}}, {"gpu": {"5": None}},
     {"gpu": {"5": float("nan")}}, "[" * 100_000],
)  # fmt: skip
def test_a_damaged_file_is_told_and_written_anew(content, tmp_path, caplog):
    timings = stored(tmp_path, content)
    with caplog.at_level(logging.WARNING):
        assert timings.seconds("gpu", 5) is None
    assert "is written anew" in caplog.text
    with timings.measure("gpu", 5, 1):
        pass
    assert timings.seconds("gpu", 5) > 0


def test_a_place_that_cannot_be_written_does_not_cost_the_run(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    with Timings(tmp_path / "file").measure("gpu", 5, 1):
        pass
    assert "is not kept" in caplog.text


def test_what_changes_the_time_changes_the_kind():
    cpu, footprint, plain = torch.device("cpu"), Footprint(2, 100, 10, 64), AccelerationOptions()
    kinds = {
        run_kind(cpu, footprint, plain, 20, False),
        run_kind(cpu, footprint, plain, 20, True),
        run_kind(cpu, footprint, AccelerationOptions(CacheKind.EASY), 20, False),
        run_kind(cpu, footprint, AccelerationOptions(compile=Compile.ON), 20, False),
        run_kind(cpu, Footprint(2, 50, 10, 64), plain, 20, False),
    }
    assert len(kinds) == 5
