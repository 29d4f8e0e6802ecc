"""Paid runs that are killed again and again, at any moment: a job is bought once, and its video is there in the end."""

import os
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from multitalk_pack.pipeline.remote.ledger import State
from multitalk_pack.pipeline.remote.purchase import DOUBT_S
from support.fake_fal import COMPLETED
from support.peak import linux_only
from support.remote import newest

TESTS = Path(__file__).resolve().parents[2]
MOST_KILLS = 25  # of one job
# A process that has imported everything forks a buyer for each line, which kills itself after so many seconds.
FORKER = """
import runpy, sys; runpy.run_path(sys.argv[1] + "/conftest.py")
import os, signal
from pathlib import Path
import httpx, fal_client
from multitalk_pack.pipeline.remote.answers import JobUncertain
from multitalk_pack.pipeline.remote.context import Caps, RemoteContext
from multitalk_pack.pipeline.remote.credentials import Key
from multitalk_pack.pipeline.remote.exchange import Backoff
from support.fake_fal import KEY
from support.remote import buy
context = RemoteContext(Key(KEY, "the test"), Path(sys.argv[2]), Path(sys.argv[3]), Caps(), Backoff(0.02))

def buyer(seed, after_s):
    process = os.fork()
    if process:
        return process
    signal.setitimer(signal.ITIMER_REAL, after_s)  # the signal has no handler: it kills
    try:
        buy(context, seed=seed)
    except JobUncertain:
        os._exit(3)
    os._exit(0)

print("ready", flush=True)
for line in sys.stdin:
    status = os.waitpid(buyer(int(line.split()[0]), float(line.split()[1])), 0)[1]
    print("killed" if os.WIFSIGNALED(status) else {0: "bought", 3: "doubt"}.get(os.WEXITSTATUS(status)), flush=True)
"""


@pytest.fixture
def attempt(fal, context):
    """One more process that buys the video of a seed, and is killed after some seconds; 0 lets it live."""
    command = [sys.executable, "-c", FORKER, str(TESTS), str(context.private), str(context.output)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ) as forker:
        assert forker.stdout.readline() == "ready\n"

        def attempt(seed, after_s):
            forker.stdin.write(f"{seed} {after_s}\n")
            forker.stdin.flush()
            return forker.stdout.readline().strip()

        yield attempt
        forker.stdin.close()


@linux_only
@pytest.mark.parametrize("num_kills", [4, pytest.param(100, marks=pytest.mark.long)])
def test_paid_runs_survive_any_number_of_kills(fal, context, attempt, num_kills):
    fal.script = [{"status": "IN_QUEUE"}, *[{"status": "IN_PROGRESS"}] * 3, COMPLETED]
    moments, outcomes, seeds = random.Random(0), Counter(), [0]
    start_s = time.monotonic()
    assert attempt(0, 0) == "bought"
    whole_s = time.monotonic() - start_s
    while outcomes["killed"] < num_kills:
        seeds.append(len(seeds))
        for number in range(MOST_KILLS + 1):
            outcome = attempt(seeds[-1], moments.uniform(0.05, 1) * whole_s if number < MOST_KILLS else 0)
            outcomes[outcome] += 1
            if outcome == "doubt":  # fal does not have it, and says so when the time for it is over
                assert newest(context, seed=seeds[-1]).state in (State.SUBMITTING, State.UNKNOWN)
                assert seeds[-1] not in [job.arguments["seed"] for job in fal.jobs.values()]
                fal.clock_s += DOUBT_S + 60
            if outcome == "bought":
                break
    assert set(outcomes) <= {"killed", "bought", "doubt"}
    assert Counter(job.arguments["seed"] for job in fal.jobs.values()) == Counter(seeds)
    rows = [newest(context, seed=seed) for seed in seeds]
    assert all(row.state is State.FINISHED and row.path.read_bytes() == fal.video for row in rows)
    assert {row.request_id for row in rows} == fal.jobs.keys() and not fal.cancels
