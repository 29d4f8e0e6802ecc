"""Runs that are killed again and again, at any moment: no finished window is lost, and the frames are the same."""

import itertools

import pytest
from support.peak import linux_only, run_script

CAMPAIGN = """
import random, time, torch
from pathlib import Path
from support import forked, run
folder, moments = Path(sys.argv[1]), random.Random(0)
model = run.model()
inputs = model, run.audio(model, 41), run.conditioning(model)

def frames(name):
    return torch.cat(list(run.generate(*inputs, store=run.open_store(folder / name, *inputs))), 1)

def windows(name):
    return sorted(path.name for path in (folder / name).rglob("*.safetensors"))

start_s = time.monotonic()
expected = frames("whole")
whole_s, runs, num_kills = time.monotonic() - start_s, [], 0
while num_kills < int(sys.argv[2]):
    name, kept = f"killed {len(runs)}", []
    while forked.is_killed(lambda: frames(name), moments.uniform(0.01, 0.7) * whole_s):
        kept.append(windows(name))
    num_kills += len(kept)
    runs.append({"kept": [*kept, windows(name)], "is_same": torch.equal(frames(name), expected)})
print(json.dumps([len(windows("whole")), runs]))
"""


@linux_only
@pytest.mark.parametrize("num_kills", [4, pytest.param(80, marks=pytest.mark.long)])
def test_runs_survive_any_number_of_kills(tmp_path, num_kills):
    num_windows, runs = run_script(CAMPAIGN, tmp_path, num_kills)
    assert sum(len(run["kept"]) - 1 for run in runs) >= num_kills
    assert all(run["is_same"] and len(run["kept"][-1]) == num_windows for run in runs)
    for before, after in itertools.chain.from_iterable(itertools.pairwise(run["kept"]) for run in runs):
        assert set(before) <= set(after), "a finished window was lost"
    partial = [names for run in runs for names in run["kept"] if 0 < len(names) < num_windows]
    assert len(partial) >= num_kills // 4, "the kills came in the middle of runs"
    assert not [path for path in tmp_path.rglob("*.part") if path.parent.parent == tmp_path]
