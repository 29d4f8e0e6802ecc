"""What was bought once is collected, by this run, by the next, and by another process."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import pytest
from multitalk_pack.pipeline.errors import RemoteError
from multitalk_pack.pipeline.remote import answers, generate
from multitalk_pack.pipeline.remote.credentials import Key
from multitalk_pack.pipeline.remote.generate import Resume
from multitalk_pack.pipeline.remote.job import JobMonitor
from multitalk_pack.pipeline.remote.ledger import Ledger, State
from multitalk_pack.pipeline.remote.payload import AI_AVATAR, INFINITALK
from support.fake_fal import COMPLETED, KEY
from support.remote import make_request, until

TESTS = Path(__file__).resolve().parents[2]
BUYER = textwrap.dedent(
    """
    import runpy, sys
    runpy.run_path(sys.argv[1] + "/conftest.py")
    from pathlib import Path
    from multitalk_pack.pipeline.remote import generate
    from multitalk_pack.pipeline.remote.client import Backoff
    from multitalk_pack.pipeline.remote.credentials import find_key
    from multitalk_pack.pipeline.remote.context import Caps, RemoteContext
    from multitalk_pack.pipeline.remote.job import JobMonitor
    from support.remote import make_request
    private = Path(sys.argv[2])
    context = RemoteContext(find_key(private), private, Path(sys.argv[3]), Caps(), Backoff(0.02))
    print(generate.run(make_request(), context, generate.Resume.AUTO, JobMonitor()).request_id)
    """
)


def buy(context, resume=Resume.AUTO, **changes):
    return generate.run(make_request(**changes), context, resume, JobMonitor())


def newest(context):
    return Ledger(context.private).newest(make_request().job_key(context.key.fingerprint))


def buyer(context):
    """Another process that buys the same video."""
    command = [sys.executable, "-c", BUYER, str(TESTS), str(context.private), str(context.output)]
    return subprocess.Popen(command, env={**os.environ, "FAL_KEY": KEY}, stdout=subprocess.PIPE, text=True)


def test_a_process_killed_after_the_post_is_followed_by_one_that_collects(fal, context):
    fal.script = [{"status": "IN_PROGRESS"}]
    process = buyer(context)
    until(lambda: fal.calls("^GET queue .*/status"), 120)
    process.send_signal(signal.SIGKILL)
    process.wait()
    fal.script = [COMPLETED]
    video = buy(context)
    assert list(fal.jobs) == [video.request_id] and len(fal.submits) == 1 and not fal.cancels
    assert len(fal.calls("^POST cdn")) == 2


def test_a_process_killed_in_the_post_is_followed_by_one_that_looks(fal, context):
    fal.fault("^POST queue", "slow", seconds=30)
    process = buyer(context)
    until(lambda: fal.jobs, 120)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert newest(context).state is State.SUBMITTING
    video = buy(context)
    assert list(fal.jobs) == [video.request_id] and len(fal.submits) == 1


def test_a_job_that_fal_does_not_list_is_waited_for_before_it_is_bought_anew(fal, context):
    fal.fault("^POST queue", "drop_before")
    for _ in range(2):
        with pytest.raises(answers.JobUncertain, match="always new"):
            buy(context)
    assert not fal.jobs
    Ledger(context.private).update(newest(context), created=time.time() - 601)
    buy(context)
    assert len(fal.jobs) == 1 and len(fal.submits) == 2


def test_as_long_as_fal_does_not_answer_nothing_is_bought_anew(fal, context):
    fal.fault("^POST queue", "drop_after")
    with pytest.raises(answers.JobUncertain):
        buy(context)
    Ledger(context.private).update(newest(context), created=time.time() - 601)
    fal.fault("^GET platform", "status", times=9, status=403)
    with pytest.raises(answers.JobUncertain):
        buy(context)
    assert len(fal.submits) == 1


def test_a_job_of_another_row_is_not_adopted(fal, context):
    buy(context)
    fal.fault("^POST queue", "drop_before")
    with pytest.raises(answers.JobUncertain):
        buy(context, Resume.ALWAYS_NEW)
    with pytest.raises(answers.JobUncertain, match="does not list it yet"):
        buy(context)
    assert newest(context).state is State.UNKNOWN


def test_the_same_again_asks_nobody(fal, context):
    first = buy(context)
    asked = len(fal.log)
    second = buy(context)
    assert len(fal.log) == asked
    assert (second.path, second.seed, second.request_id) == (first.path, first.seed, first.request_id)
    assert second.billed_usd == first.billed_usd and "nothing bought" in second.info


def test_a_deleted_file_is_fetched_again(fal, context):
    buy(context).path.unlink()
    assert buy(context).path.exists()
    assert len(fal.submits) == 1


def test_a_deleted_file_that_fal_has_forgotten_is_lost_and_then_bought_anew(fal, context):
    buy(context).path.unlink()
    fal.jobs.clear()
    with pytest.raises(answers.JobLost, match="Run again to buy the video anew"):
        buy(context)
    assert newest(context).state is State.LOST and len(fal.submits) == 1
    buy(context)
    assert len(fal.submits) == 2


def test_always_new_buys_a_second_time_without_sending_the_inputs_again(fal, context):
    buy(context)
    buy(context, Resume.ALWAYS_NEW)
    assert len(fal.jobs) == 2 and len(fal.calls("^POST cdn")) == 2 and newest(context).attempt == 2


def test_another_account_buys_its_own(fal, context):
    buy(context)
    fal.key = "another-account:0123456789"
    buy(replace(context, key=Key(fal.key, "the test")))
    assert len(fal.jobs) == 2


def test_two_equal_runs_at_once_buy_one_job(fal, context):
    fal.script = [{"status": "IN_PROGRESS"}, {"status": "IN_PROGRESS"}, COMPLETED]
    jobs = [generate.start(make_request(), context) for _ in range(2)]
    videos = [job.result() for job in jobs]
    assert len(fal.submits) == 1 and videos[0].path == videos[1].path


def test_a_paid_video_that_could_not_be_fetched_is_fetched_by_the_next_run(fal, context):
    fal.fault("^GET cdn", "status", times=5, status=500)
    with pytest.raises(RemoteError, match="paid for: run again"):
        buy(context)
    assert newest(context).state is State.SUBMITTED and not fal.cancels
    buy(context)
    assert len(fal.submits) == 1 and newest(context).state is State.DONE


def test_the_ledger_is_private_and_holds_neither_key_nor_prompt(fal, context):
    buy(context, prompt="a very private sentence")
    ledger = context.private / "fal_ledger.sqlite3"
    assert ledger.stat().st_mode & 0o777 == 0o600 and context.private.stat().st_mode & 0o777 == 0o700
    content = ledger.read_bytes()
    assert KEY.encode() not in content and b"private sentence" not in content


def test_old_rows_are_forgotten(fal, context, monkeypatch):
    buy(context)
    monkeypatch.setattr(time, "time", lambda real=time.time: real() + 31 * 24 * 3600)
    assert newest(context) is None


def test_two_processes_cannot_begin_the_same_attempt(fal, context):
    buy(context)
    row = newest(context)
    with pytest.raises(RemoteError, match="Another ComfyUI"):
        Ledger(context.private).begin(row)


def collected(context, request_id, endpoint=AI_AVATAR):
    return generate.start_collecting(request_id, endpoint, context).result()


def test_a_job_is_collected_by_its_id_whoever_bought_it(fal, context, tmp_path):
    bought = buy(context)
    elsewhere = replace(context, private=tmp_path / "another machine", output=tmp_path / "another output")
    video = collected(elsewhere, f" {bought.request_id}\n")
    assert video.path.read_bytes() == fal.video and len(fal.submits) == 1
    assert Ledger(elsewhere.private).spent_usd() == video.billed_usd == 1.45
    asked = len(fal.log)
    assert collected(elsewhere, bought.request_id).path == video.path
    assert collected(context, bought.request_id).path == bought.path
    assert len(fal.log) == asked


def test_leaving_a_job_that_is_collected_does_not_cancel_it(fal, context, tmp_path):
    fal.script = [{"status": "IN_PROGRESS"}]
    buying = generate.start(make_request(), context)
    until(lambda: fal.calls("^GET queue .*/status"))
    (request_id,) = fal.jobs
    elsewhere = replace(context, private=tmp_path / "another machine", output=tmp_path / "another output")
    collecting = generate.start_collecting(request_id, AI_AVATAR, elsewhere)
    until(lambda: Ledger(elsewhere.private).by_request_id(request_id))
    collecting.monitor.stop()
    with pytest.raises(answers.JobStopped):
        collecting.result()
    fal.script = [COMPLETED]
    assert collected(elsewhere, request_id).path.read_bytes() == fal.video == buying.result().path.read_bytes()
    assert len(fal.submits) == 1 and not fal.cancels


def test_what_was_bought_here_is_collected_whatever_endpoint_is_chosen(fal, context):
    bought = buy(context, endpoint=INFINITALK)
    bought.path.unlink()
    assert collected(context, bought.request_id, AI_AVATAR).path.exists()
    buy(context, endpoint=INFINITALK)
    assert len(fal.submits) == 1


def test_what_was_bought_elsewhere_is_asked_for_under_the_endpoint_that_is_chosen(fal, context, tmp_path):
    bought = buy(context, endpoint=INFINITALK)
    elsewhere = replace(context, private=tmp_path / "another machine", output=tmp_path / "another output")
    with pytest.raises(answers.JobLost, match="of fal-ai/ai-avatar"):
        collected(elsewhere, bought.request_id, AI_AVATAR)
    assert collected(elsewhere, bought.request_id, INFINITALK).path.exists()


def test_an_id_that_fal_does_not_know_is_told(fal, context):
    with pytest.raises(answers.JobLost, match=r"does not know request nobody of fal-ai/ai-avatar.*Choose the endpoint"):
        collected(context, "nobody")
    with pytest.raises(RemoteError, match="ids of the 3 parts of a long video"):
        collected(context, "one,two,three")
    with pytest.raises(RemoteError, match="no request id"):
        collected(context, " ")
    assert not fal.submits
