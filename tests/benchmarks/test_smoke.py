"""Every benchmark runs at its smallest size, says the same as what it is measured against, and prints a table."""

import json
import shutil
import subprocess
import sys

import pytest
from support.pack import PACK


@pytest.mark.parametrize("what", ["ops", "dit", "step", "vae", "audio", "weights", "clip"])
def test_a_benchmark_runs_and_agrees_with_its_baseline(what, tmp_path):
    out = tmp_path / "figures.json"
    command = [sys.executable, "-m", "benchmarks", what, "--sizes", "smoke", "--rounds", "1", "--json", str(out)]
    subprocess.run(command, check=True, capture_output=True, cwd=PACK)
    tables = json.loads(out.read_text())
    rows = [row for table in tables.values() for row in table["rows"]]
    assert rows and all(row["seconds"] > 0 and row["ours, s"] > 0 for row in rows)
    same_work = [row for row in rows if row["against"] in ("plain formulas", "diffusers", "published way")]
    assert all(row["relative error"] <= 2e-6 for row in same_work if row["relative error"] is not None)
    assert out.with_suffix(".md").read_text().count("|") > 10


@pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="its people speak by espeak-ng")
def test_the_benchmark_of_accelerations_tells_gain_and_price(tmp_path):
    out = tmp_path / "figures.json"
    command = [sys.executable, "-m", "benchmarks", "acceleration", "--sizes", "smoke", "--json", str(out)]
    subprocess.run(command, check=True, capture_output=True, cwd=PACK)
    (table,) = json.loads(out.read_text()).values()
    exact, *others = table["rows"]
    assert exact["way"] == "preset none" and exact["PSNR, dB"] is None and exact["forwards"] == 27  # 9 steps x 3
    assert all(row["forwards"] <= 27 and row["PSNR, dB"] > 0 and 0 < row["SSIM"] <= 1 for row in others)
    assert others[0]["way"] == "preset regular" and others[0]["forwards"] < 27
