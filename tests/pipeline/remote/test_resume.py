"""A purchase is collected: by this run, by the next, by another process, and by its id."""

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
from multitalk_pack.pipeline.remote import answers
from multitalk_pack.pipeline.remote.credentials import Key
from multitalk_pack.pipeline.remote.endpoints import AI_AVATAR, INFINITALK
from multitalk_pack.pipeline.remote.generate import start_collecting
from multitalk_pack.pipeline.remote.ledger import Ledger, State
from multitalk_pack.pipeline.remote.purchase import Resume
from support.fake_fal import COMPLETED, KEY, RemoteJob
from support.remote import buy, make_request, newest, start, until, write_video

TESTS = Path(__file__).resolve().parents[2]
BUYER = textwrap.dedent(
    """
    import runpy, sys
    runpy.run_path(sys.argv[1] + "/conftest.py")
    from pathlib import Path
    from multitalk_pack.pipeline.remote.exchange import Backoff
    from multitalk_pack.pipeline.remote.credentials import find_key
    from multitalk_pack.pipeline.remote.context import Caps, RemoteContext
    from support.remote import buy, make_request, newest, start, until, write_video
    private = Path(sys.argv[2])
    context = RemoteContext(find_key(private), private, Path(sys.argv[3]), Caps(), Backoff(0.02))
    print("ready", flush=True)
    print(buy(context).request_id)
    """
)


def collected(context, request_id, endpoint=AI_AVATAR):
    return start_collecting(request_id, endpoint.id, context).result()


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
    num_calls = len(fal.log)
    second = buy(context)
    assert len(fal.log) == num_calls
    assert (second.path, second.seed, second.request_id) == (first.path, first.seed, first.request_id)
    assert second.billed_usd == first.billed_usd and "nothing bought" in second.info


def overwrite(path):
    other = path.with_name("other.mp4")
    write_video(other, 3)
    os.replace(other, path)


def replace_by_folder(path):
    path.unlink()
    (path / "within").mkdir(parents=True)


DAMAGES = {
    "deleted": lambda path: path.unlink(),
    "emptied": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-100]),
    "overwritten by a video": overwrite,
    "overwritten": lambda path: path.write_bytes(b"notes" * 1000),
    "a folder": replace_by_folder,
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
@pytest.mark.parametrize("way", ["run", "collect"])
def test_a_file_that_is_no_longer_the_video_is_fetched_again(fal, context, damage, way):
    first = buy(context)
    damage(first.path)
    again = buy(context) if way == "run" else collected(context, first.request_id)
    assert again.path.read_bytes() == fal.video and len(fal.submits) == 1
    num_calls = len(fal.log)
    assert buy(context).path == again.path and len(fal.log) == num_calls


def test_a_video_that_people_have_changed_is_not_overwritten(fal, context):
    path = buy(context).path
    overwrite(path)
    content = path.read_bytes()
    assert buy(context).path != path and path.read_bytes() == content


def test_two_processes_that_fetch_one_job_both_have_the_video(fal, context):
    fal.script = [{"status": "IN_PROGRESS"}]
    processes = [buyer(context)]
    until(lambda: fal.calls("^GET queue .*/status"), 120)
    processes.append(buyer(context))
    assert processes[1].stdout.readline() == "ready\n"
    num_calls = len(fal.log)
    until(lambda: len(fal.log) > num_calls + 40, 120)
    fal.fault("^GET cdn", "slow", times=2, seconds=0.5)
    fal.script = [COMPLETED]
    outputs = [process.communicate(timeout=120)[0].split()[-1] for process in processes]
    assert outputs == list(fal.jobs) * 2 and len(fal.submits) == 1
    assert buy(context).path.read_bytes() == fal.video
    assert not list(context.output.rglob("*.part"))


def test_two_fetches_at_once_write_two_unfinished_files(fal, context):
    """The rows of two machines that share an output folder."""
    elsewhere = replace(context, private=context.private.with_name("another machine"))
    first = buy(context)
    first.path.unlink()
    fal.fault("^GET cdn", "slow", times=2, seconds=0.3)
    jobs = [start_collecting(first.request_id, AI_AVATAR.id, each) for each in (context, elsewhere)]
    assert {job.result().path.read_bytes() for job in jobs} == {fal.video}
    assert not list(context.output.rglob("*.part"))


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


@pytest.fixture
def rotated(fal, context):
    """The same account with a new key, after a purchase with the old one."""
    buy(context)
    fal.key = "a-new-key-of-the-account:0123456789"
    return replace(context, key=Key(fal.key, "the test"))


def test_a_video_of_another_key_is_said_before_it_is_bought_again(fal, context, rotated):
    num_calls = len(fal.log)
    (request_id,) = fal.jobs
    with pytest.raises(
        RemoteError, match=f"bought with another key .request {request_id}, done.*`any key`.*`always new`"
    ):
        buy(rotated)
    assert len(fal.log) == num_calls and newest(rotated) is None


def test_any_key_takes_the_video_of_another_key(fal, context, rotated):
    num_calls = len(fal.log)
    assert buy(rotated, Resume.ANY_KEY).path.read_bytes() == fal.video
    assert len(fal.log) == num_calls


def test_any_key_fetches_the_video_of_another_key_again(fal, context, rotated):
    newest(context).path.unlink()
    assert buy(rotated, Resume.ANY_KEY).path.read_bytes() == fal.video
    assert len(fal.submits) == 1


def test_any_key_buys_nothing_where_the_present_account_does_not_know_the_job(fal, context, rotated):
    newest(context).path.unlink()
    fal.jobs.clear()
    for _ in range(2):
        with pytest.raises(answers.JobLost, match="`always new`"):
            buy(rotated, Resume.ANY_KEY)
    assert len(fal.submits) == 1 and newest(context).state is State.FINISHED


def test_always_new_buys_with_the_present_key(fal, context, rotated):
    buy(rotated, Resume.ALWAYS_NEW)
    assert len(fal.jobs) == 2
    buy(rotated)
    assert len(fal.jobs) == 2


def test_two_equal_runs_at_once_buy_one_job(fal, context):
    fal.script = [{"status": "IN_PROGRESS"}, {"status": "IN_PROGRESS"}, COMPLETED]
    jobs = [start(make_request(), context) for _ in range(2)]
    videos = [job.result() for job in jobs]
    assert len(fal.submits) == 1 and videos[0].path == videos[1].path


def test_a_paid_video_that_could_not_be_fetched_is_fetched_by_the_next_run(fal, context):
    fal.fault("^GET cdn", "status", times=5, status=500)
    with pytest.raises(RemoteError, match="paid for: run again"):
        buy(context)
    assert newest(context).state is State.SUBMITTED and not fal.cancels
    buy(context)
    assert len(fal.submits) == 1 and newest(context).state is State.FINISHED


def test_the_ledger_is_private_and_holds_neither_key_nor_prompt(fal, context):
    buy(context, prompt="a very private sentence")
    ledger = context.private / "fal_ledger.sqlite3"
    assert ledger.stat().st_mode & 0o777 == 0o600 and context.private.stat().st_mode & 0o777 == 0o700
    content = ledger.read_bytes()
    assert KEY.encode() not in content and b"private sentence" not in content


def test_two_processes_cannot_begin_the_same_attempt(fal, context):
    buy(context)
    row = newest(context)
    with pytest.raises(RemoteError, match="Another ComfyUI"):
        Ledger(context.private).begin(row)


def test_a_job_is_collected_by_its_id_whoever_bought_it(fal, context, tmp_path):
    bought = buy(context)
    elsewhere = replace(context, private=tmp_path / "another machine", output=tmp_path / "another output")
    video = collected(elsewhere, f" {bought.request_id}\n")
    assert video.path.read_bytes() == fal.video and len(fal.submits) == 1
    assert Ledger(elsewhere.private).spending_usd() == video.billed_usd == 1.45
    num_calls = len(fal.log)
    assert collected(elsewhere, video.request_id).path == video.path
    assert collected(context, video.request_id).path == bought.path
    assert len(fal.log) == num_calls


@pytest.mark.parametrize("text", ["\ud800", "a\0b", "a\nb"], ids=ascii)
def test_an_id_that_no_text_can_hold_is_refused_before_the_ledger_sees_it(fal, context, text):
    with pytest.raises(RemoteError, match="is no request id"):
        collected(context, text)
    assert not fal.log


def test_leaving_a_job_that_is_collected_does_not_cancel_it(fal, context, tmp_path):
    fal.script = [{"status": "IN_PROGRESS"}]
    buying = start(make_request(), context)
    until(lambda: fal.calls("^GET queue .*/status"))
    (request_id,) = fal.jobs
    elsewhere = replace(context, private=tmp_path / "another machine", output=tmp_path / "another output")
    collecting = start_collecting(request_id, AI_AVATAR.id, elsewhere)
    until(lambda: Ledger(elsewhere.private).by_request_id(request_id))
    collecting.monitor.stop()
    with pytest.raises(answers.JobInterrupted):
        collecting.result()
    fal.script = [COMPLETED]
    assert collected(elsewhere, request_id).path.read_bytes() == fal.video == buying.result().path.read_bytes()
    assert len(fal.submits) == 1 and not fal.cancels


def test_what_was_bought_here_is_collected_whatever_endpoint_is_chosen(fal, context):
    video = buy(context, endpoint=INFINITALK)
    video.path.unlink()
    assert collected(context, video.request_id, AI_AVATAR).path.exists()
    buy(context, endpoint=INFINITALK)
    assert len(fal.submits) == 1


def test_what_was_bought_elsewhere_is_asked_for_under_the_endpoint_that_is_chosen(fal, context, tmp_path):
    video = buy(context, endpoint=INFINITALK)
    elsewhere = replace(context, private=tmp_path / "another machine", output=tmp_path / "another output")
    with pytest.raises(answers.JobLost, match="of fal-ai/ai-avatar"):
        collected(elsewhere, video.request_id, AI_AVATAR)
    assert collected(elsewhere, video.request_id, INFINITALK).path.exists()


def test_an_id_that_fal_does_not_know_is_told(fal, context):
    with pytest.raises(answers.JobLost, match=r"does not know request nobody of fal-ai/ai-avatar.*Choose the endpoint"):
        collected(context, "nobody")
    with pytest.raises(RemoteError, match="ids of the 3 parts of a long video"):
        collected(context, "one,two,three")
    with pytest.raises(RemoteError, match="no request id"):
        collected(context, " ")
    assert not fal.submits


def test_what_only_collect_knows_has_no_price(fal, context):
    fal.jobs["x-1"] = RemoteJob("x-1", "fal-ai/ai-avatar/single-text", {}, time.time())
    video = start_collecting("x-1", "fal-ai/ai-avatar/single-text", context).result()
    assert video.path.read_bytes() == fal.video and "7.25 billed units\n" in video.info and video.billed_usd is None


def test_a_video_that_is_gone_at_fal_is_said_and_never_bought_again_by_itself(fal, context):
    fal.fault("^GET cdn", "status", status=410, times=99)
    for _ in range(3):
        with pytest.raises(RemoteError, match=r"fal no longer has the video \(HTTP 410\).*paid for.*Request ") as error:
            buy(context)
        assert next(iter(fal.jobs)) in str(error.value)
    assert len(fal.submits) == 1
    fal.faults.clear()
    assert buy(context).path.exists() and len(fal.submits) == 1


CONTENT_REJECTIONS = {
    "at the POST": ("^POST queue", 422, 0),
    "at the result": (r"^GET queue .*/requests/[^/]+$", 422, 1),
    "of a job that has failed": (r"^GET queue .*/requests/[^/]+$", 400, 1),
}


@pytest.mark.parametrize(("pattern", "status", "num_jobs"), CONTENT_REJECTIONS.values(), ids=CONTENT_REJECTIONS)
def test_a_request_that_is_refused_for_its_content_is_not_sent_again(fal, context, pattern, status, num_jobs):
    body = '{"detail": [{"loc": ["body", "image_url"], "msg": "no face"}]}'
    fal.script = [{**COMPLETED, "error": "validation"}] if status == 400 else [COMPLETED]
    fal.fault(pattern, "status", status=status, body=body)
    with pytest.raises(answers.ContentRejected, match=r"image_url: no face.*Change the picture"):
        buy(context)
    num_calls = len(fal.log)
    for _ in range(2):
        with pytest.raises(answers.ContentRejected, match=r"refused this very request before.*image_url: no face"):
            buy(context)
    assert len(fal.log) == num_calls and len(fal.jobs) == num_jobs
    fal.script = [COMPLETED]
    assert buy(context, seed=43).path.exists()
    buy(context, Resume.ALWAYS_NEW)
    assert len(fal.jobs) == num_jobs + 2
