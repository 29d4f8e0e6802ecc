"""Waiting: bad answers are survived, bad ends are told, and a stop at any stage sends exactly one cancel."""

import gc
import threading

import pytest
from multitalk_pack.pipeline.errors import RemoteError
from multitalk_pack.pipeline.host import TorchHost
from multitalk_pack.pipeline.remote import answers, client, collect, exchange
from multitalk_pack.pipeline.remote.ledger import State
from support.fake_fal import COMPLETED, Reply
from support.remote import buy, make_request, newest, remote_threads, run_on_host, start, until

POLL, RESULT = "^GET queue .*/status", r"^GET queue .*/requests/[^/]+$"
RUNNING = {"status": "IN_PROGRESS", "logs": []}


BAD_POLLS = {
    "500 three times": {"kind": "status", "status": 500, "times": 3},
    "dropped twice": {"kind": "drop_before", "times": 2},
    "cut": {"kind": "truncate", "times": 2},
    "no JSON": {"kind": "status", "status": 200, "body": "<html>", "times": 2},
    "no status": {"kind": "status", "status": 200, "body": "{}", "times": 2},
    "an unknown word": {"kind": "status", "status": 200, "body": '{"status": "PONDERING"}', "times": 2},
    "a redirect": {"kind": "status", "status": 307, "headers": {"Location": "https://evil.example/"}, "times": 2},
    "logs of another kind": {"kind": "status", "status": 202, "body": '{"status": "IN_PROGRESS", "logs": [7, {}]}'},
    "no place in the queue": {"kind": "status", "status": 202, "body": '{"status": "IN_QUEUE"}'},
}


@pytest.mark.parametrize("fault", BAD_POLLS.values(), ids=BAD_POLLS)
def test_a_bad_poll_is_not_the_end(fal, context, fault):
    fal.fault(POLL, **fault)
    buy(context)
    assert len(fal.submits) == 1 and not fal.cancels and not [c for c in fal.log if "evil" in c.host]


@pytest.mark.parametrize(
    ("status", "error", "state"), [(401, answers.AccessDenied, State.SUBMITTED), (404, answers.JobLost, State.LOST)]
)
def test_a_key_refused_or_a_job_forgotten_ends_the_wait(fal, context, status, error, state):
    fal.fault(POLL, "status", status=status, body='{"detail": "no"}', times=99)
    with pytest.raises(error):
        buy(context)
    assert len(fal.calls(POLL)) == 1 and newest(context).state is state and not fal.cancels


def test_a_service_that_stays_silent_is_given_up_and_the_job_kept(fal, context, monkeypatch):
    monkeypatch.setattr(collect, "SILENCE_UNITS", 10)
    fal.fault(POLL, "status", status=500, times=99)
    with pytest.raises(RemoteError, match="run again to collect it"):
        buy(context)
    assert newest(context).state is State.SUBMITTED and not fal.cancels
    fal.faults.clear()
    buy(context)
    assert len(fal.submits) == 1


def test_a_job_that_never_ends_is_left_to_the_next_run(fal, context, monkeypatch):
    monkeypatch.setattr(collect, "PATIENCE_UNITS", 5)
    fal.script = [RUNNING]
    with pytest.raises(RemoteError, match="still running at fal"):
        buy(context)
    assert newest(context).state is State.SUBMITTED and not fal.cancels


def test_a_job_that_completes_with_an_error_failed(fal, context):
    fal.script = [{**COMPLETED, "error": "out of memory", "error_type": "internal"}]
    with pytest.raises(answers.JobFailed, match="out of memory"):
        buy(context)
    assert newest(context).state is State.FAILED and len(fal.submits) == 1


@pytest.mark.parametrize("status", [422, 500, 503])
def test_a_result_that_is_a_failure_is_told_and_not_bought_again(fal, context, status):
    body = b'{"detail": [{"loc": ["body", "image_url"], "msg": "no face found", "input": "SECRET INPUT"}]}'
    fal.result_reply = Reply(status, body)
    with pytest.raises(answers.JobFailed, match="image_url: no face found") as failed:
        buy(context)
    assert "SECRET INPUT" not in str(failed.value)
    state = State.CONTENT_REJECTED if status == 422 else State.FAILED
    assert newest(context).state is state and len(fal.submits) == 1


def test_a_result_that_is_late_is_asked_for_again(fal, context):
    fal.fault(RESULT, "drop_before", times=2)
    fal.fault(RESULT, "status", status=503, body="nginx")
    buy(context)
    assert len(fal.submits) == 1


# A stage: what the fake does, what to wait for, how many cancels, and what the ledger then says.
STAGES = {
    "sending the inputs": ("^POST cdn", "slow", lambda fal: fal.calls("^POST cdn"), 0, None),
    "in the POST": ("^POST queue", "slow", lambda fal: fal.submits, 1, State.CANCEL_REQUESTED),
    "busy": ("^POST queue", "busy", lambda fal: fal.submits, 0, State.UNSENT),
    "in the queue": (POLL, "queued", lambda fal: len(fal.calls(POLL)) > 1, 1, State.CANCEL_REQUESTED),
    "while it runs": (POLL, "running", lambda fal: len(fal.calls(POLL)) > 1, 1, State.CANCEL_REQUESTED),
    "in a poll that hangs": (POLL, "hang", lambda fal: fal.calls(POLL), 1, State.CANCEL_REQUESTED),
    "in a row of bad polls": (POLL, "bad", lambda fal: len(fal.calls(POLL)) > 1, 1, State.CANCEL_REQUESTED),
    "while it is fetched": ("^GET cdn", "slow", lambda fal: fal.calls("^GET cdn"), 1, State.CANCEL_REQUESTED),
}


@pytest.mark.parametrize("stage", STAGES)
def test_a_stop_frees_the_user_at_once_and_sends_one_cancel(fal, context, stage):
    pattern, kind, is_there, num_cancels, state = STAGES[stage]
    fal.script = {"queued": [{"status": "IN_QUEUE", "queue_position": 1}], "running": [RUNNING]}.get(kind, [COMPLETED])
    if kind in ("slow", "hang"):
        fal.fault(pattern, kind, seconds=60)
    elif kind == "busy":
        fal.fault(pattern, "status", times=99, status=429, headers={"Retry-After": "30"})
    elif kind == "bad":
        fal.fault(pattern, "status", times=99, status=500)

    class Interrupted(BaseException):
        pass

    class Host(TorchHost):
        def check_cancelled(self):
            if is_there(fal):
                self.num_polls = len(fal.calls(POLL))
                raise Interrupted

    host = Host("cpu")
    with pytest.raises(Interrupted):
        run_on_host(make_request(), context, host)
    until(lambda: fal.withheld == (kind in ("slow", "hang")))  # nobody has waited for that answer
    if stage != "in the POST":  # whose answer has the id that is to be cancelled
        until(lambda: not remote_threads())
    fal.released.set()
    until(lambda: not remote_threads())
    assert len(fal.calls(POLL)) <= host.num_polls + 1  # one may have been under way
    assert len(fal.cancels) == num_cancels and len(fal.submits) == (0 if stage == "sending the inputs" else 1)
    assert (newest(context).state if state else newest(context)) is state
    assert not list(context.output.rglob("*.part"))


def test_a_cancel_without_an_answer_is_sent_once_more(fal, context, monkeypatch):
    monkeypatch.setattr(client, "CANCEL_S", 1)
    fal.script = [RUNNING]
    fal.fault("^PUT queue", "hang", seconds=60)
    job = start(make_request(), context)
    until(lambda: fal.calls(POLL))
    job.monitor.stop()
    with pytest.raises(answers.JobInterrupted):
        job.result()
    assert len(fal.cancels) == 2 and newest(context).state is State.CANCEL_REQUESTED


def stopped_while_running(fal, context):
    fal.script = [RUNNING]
    job = start(make_request(), context)
    until(lambda: fal.calls(POLL))
    job.monitor.stop()
    return job


def test_a_cancelled_job_that_finished_anyhow_is_collected(fal, context):
    fal.on_cancel = "ignored"
    stopped_while_running(fal, context).join()
    fal.script = [COMPLETED]
    video = buy(context)
    assert list(fal.jobs) == [video.request_id] and len(fal.cancels) == 1 and newest(context).state is State.FINISHED


@pytest.mark.parametrize("on_cancel", ["removed", "failed"])
def test_a_job_that_was_really_cancelled_is_bought_anew(fal, context, on_cancel):
    fal.on_cancel = on_cancel
    stopped_while_running(fal, context).join()
    fal.script = [COMPLETED]
    buy(context)
    assert len(fal.submits) == 2 and newest(context).attempt == 2


def test_cancel_and_queue_again_joins_the_thread_that_is_ending(fal, context):
    fal.on_cancel = "ignored"
    fal.fault("^PUT queue", "slow", seconds=0.3)
    first = stopped_while_running(fal, context)
    fal.script = [COMPLETED]
    second = start(make_request(), context)
    until(lambda: second.monitor.text == "waiting for the same job")
    assert second.result().request_id in fal.jobs
    assert not first.alive and len(fal.submits) == 1 and len(fal.cancels) == 1


def test_no_thread_and_no_connection_is_left(fal, context):
    buy(context)
    fal.on_cancel = "failed"
    job = start(make_request(seed=43), context)
    job.monitor.stop()
    job.join()
    gc.collect()  # fal-client leaves the closing of its upload connections to it
    until(lambda: fal.open_connections == 0 and not remote_threads())
    assert all("FAL_CLIENT" not in thread.name for thread in threading.enumerate())


def test_polls_become_rarer():
    pace = exchange.Backoff()
    assert [pace.poll(elapsed_s) for elapsed_s in (0, 29, 31, 299, 301, 5000)] == [1, 1, 2, 2, 5, 5]
