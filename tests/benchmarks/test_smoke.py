"""Every benchmark runs at its smallest size, says the same as what it is measured against, and prints a table."""

import json
import subprocess
import sys
from statistics import geometric_mean

import pytest
from support.pack import PACK
from support.speech import needs_espeak


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


def test_in_bfloat16_ours_is_as_near_to_float32_as_the_plain_formulas(tmp_path):
    out = tmp_path / "figures.json"
    command = [sys.executable, "-m", "benchmarks", "dit", "--sizes", "smoke", "tiny", "--dtype", "bfloat16"]
    subprocess.run([*command, "--rounds", "1", "--json", str(out)], check=True, capture_output=True, cwd=PACK)
    (table,) = json.loads(out.read_text()).values()
    rows = [row for row in table["rows"] if row["against"] == "plain formulas"]
    ratios = [row["ours, to float32"] / row["to float32"] for row in rows]
    # Rounding luck: over 8 seeds the ratio of a single forward was 0.35 to 3.7, and 0.997 in the geometric mean.
    assert len(ratios) == 4 and 0 < geometric_mean(ratios) <= 1.05


@needs_espeak
def test_the_benchmark_of_accelerations_tells_gain_and_price(tmp_path):
    out = tmp_path / "figures.json"
    command = [sys.executable, "-m", "benchmarks", "acceleration", "--sizes", "smoke", "--json", str(out)]
    subprocess.run(command, check=True, capture_output=True, cwd=PACK)
    (table,) = json.loads(out.read_text()).values()
    exact, *others = table["rows"]
    assert exact["way"] == "preset none" and exact["PSNR, dB"] is None and exact["forwards"] == 27  # 9 steps x 3
    assert all(0 < row["denoising, s"] < row["seconds"] for row in table["rows"])
    assert all(row["forwards"] <= 27 and row["PSNR, dB"] > 0 and 0 < row["SSIM"] <= 1 for row in others)
    assert others[0]["way"] == "preset regular" and others[0]["forwards"] < 27


@needs_espeak
def test_the_benchmark_of_lips_tells_what_was_reached_and_wanted(tmp_path):
    out = tmp_path / "figures.json"
    command = [sys.executable, "-m", "benchmarks.lip_sync", "lips", "two", "turns", "--count", "1", "--frames", "17"]
    subprocess.run([*command, "--steps", "2", "--json", str(out)], check=True, capture_output=True, cwd=PACK)
    tables = json.loads(out.read_text())
    assert [len(table["rows"]) for table in tables.values()] == [7, 3, 3]
    for row in (row for table in tables.values() for row in table["rows"]):
        relation, limit = row["wanted"].split()
        assert row["holds"] == ("yes" if (row["reached"] >= float(limit)) == (relation == ">=") else "no")
