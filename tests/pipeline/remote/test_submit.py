"""Buying: one POST, and exactly one job, whatever happens to its answer."""

import json
import sys
from dataclasses import replace

import pytest
from multitalk_pack.pipeline.config import Resolution
from multitalk_pack.pipeline.errors import ConfigError, RemoteError
from multitalk_pack.pipeline.host import Progress, TorchHost
from multitalk_pack.pipeline.remote import answers, client, exchange
from multitalk_pack.pipeline.remote.context import Caps, RemoteContext
from multitalk_pack.pipeline.remote.job import JobMonitor
from multitalk_pack.pipeline.remote.ledger import State
from multitalk_pack.pipeline.remote.purchase import Resume, run
from support.fake_fal import COMPLETED, KEY
from support.remote import buy, make_request, newest, remote_threads, run_on_host, until

SUBMIT = "^POST queue"


class Listener(TorchHost):
    """A host that keeps its reports."""

    def __init__(self):
        super().__init__("cpu")
        self.reports: list[Progress] = []

    def report(self, progress, preview=None):
        self.reports.append(progress)


QUEUE_AND_LOGS = [
    {"status": "IN_QUEUE", "queue_position": 2},
    {"status": "IN_QUEUE", "queue_position": 0},
    {"status": "IN_PROGRESS", "logs": [{"message": "loading", "timestamp": "1"}]},
    {
        "status": "IN_PROGRESS",
        "logs": [{"message": "loading", "timestamp": "1"}, {"message": "\x1b40%", "timestamp": "2"}],
    },
    COMPLETED,
]


@pytest.mark.parametrize("door", ["fal", "plain_fal"])
def test_a_video_is_bought_and_fetched(door, request, context, caplog):
    fal, host = request.getfixturevalue(door), Listener()
    fal.script = QUEUE_AND_LOGS
    context = replace(context, backoff=exchange.Backoff(0.15))
    caplog.set_level("INFO", "multitalk_pack")
    video = run_on_host(make_request(), context, host)
    texts = [progress.stage for progress in host.reports]
    assert any("2 ahead" in text and "about $1.45" in text for text in texts) and any(
        "0 ahead" in text for text in texts
    )
    assert [record.message for record in caplog.records].count("fal: loading") == 1
    fractions = [progress.fraction for progress in host.reports]
    assert fractions == sorted(fractions) and max(fractions) > 0.35
    assert video.path.read_bytes() == fal.video and video.path.parent == context.output.resolve() / "multitalk"
    assert (video.seed, video.units, video.billed_usd) == (42, 7.25, 1.45)
    assert "7.25 billed units, $1.45" in video.info and "without sound" in video.info
    assert len(fal.submits) == 1 and len(fal.calls("^POST cdn /files/upload")) == 2
    until(lambda: not remote_threads())


def test_the_price_is_told_before_anything_is_sent(fal, context):
    reports = []

    class Listened(JobMonitor):
        def report(self, text, fraction):
            reports.append((text, len(fal.calls("^POST"))))
            super().report(text, fraction)

    run(make_request(), context, Resume.AUTO, Listened())
    assert next(num_posts for text, num_posts in reports if "$" in text) == 0


def test_the_request_is_what_the_card_wants(fal, context):
    buy(context)
    (submit,) = fal.submits
    body = json.loads(submit.body)
    assert (submit.host, submit.path) == ("queue.fal.run", "/fal-ai/ai-avatar")
    assert submit.headers["x-fal-request-timeout"] == "3600" and "x-fal-store-io" not in submit.headers
    assert body["image_url"].endswith("/portrait.png") and body["audio_url"].endswith("/speech.wav")
    upload = fal.calls("^POST cdn")[0]
    assert json.loads(upload.headers["x-fal-object-lifecycle"]) == {"expiration_duration_seconds": 86400}
    (poll,) = fal.calls("^GET queue .*/status")
    assert poll.path.startswith("/fal-ai/ai-avatar/requests/") and poll.path.endswith("/status?logs=1")


LOST_ANSWERS = {
    "connection lost after acceptance": {"kind": "drop_after"},
    "500": {"kind": "status", "status": 500},
    "502": {"kind": "status", "status": 502, "body": "bad gateway"},
    "504": {"kind": "status", "status": 504},
    "502 of the front door": {"kind": "status", "status": 502, "body": "<center>nginx</center>"},
    "504 of the front door": {"kind": "status", "status": 504, "body": "<center>nginx</center>"},
    "a portal's page with 200": {"kind": "status", "status": 200, "body": "<html>Welcome</html>"},
    "200 without an id": {"kind": "status", "status": 200, "body": "{}"},
    "a body that breaks off": {"kind": "truncate"},
}


@pytest.mark.parametrize("fault", LOST_ANSWERS.values(), ids=LOST_ANSWERS)
def test_a_lost_answer_is_never_followed_by_a_second_post(fal, context, fault):
    fal.fault(SUBMIT, **fault)
    with pytest.raises(answers.JobUncertain, match="may or may not have received this job"):
        buy(context)
    assert len(fal.submits) == 1 and newest(context).state is State.UNKNOWN


def test_a_job_whose_answer_was_lost_is_found_again_by_its_inputs(fal, context):
    fal.fault(SUBMIT, "drop_after")
    with pytest.raises(answers.JobUncertain):
        buy(context)
    video = buy(context)
    assert len(fal.jobs) == 1 and len(fal.submits) == 1 and video.request_id in fal.jobs
    assert newest(context).state is State.FINISHED


def test_silence_after_acceptance_is_a_lost_answer(fal, context, monkeypatch):
    monkeypatch.setattr(client, "SUBMIT_S", 0.3)
    fal.fault(SUBMIT, "hang_after", seconds=3)
    with pytest.raises(answers.JobUncertain, match="no end within"):
        buy(context)
    buy(context)
    assert len(fal.jobs) == 1 and len(fal.submits) == 1


def test_a_refusal_of_the_front_door_is_tried_again(fal, context):
    fal.fault(SUBMIT, "status", status=503, body="<center>nginx</center>")
    buy(context)
    assert len(fal.submits) == 2 and len(fal.jobs) == 1


@pytest.mark.parametrize(
    "fault", [{"kind": "status", "status": 503}, {"kind": "drop_before"}], ids=["proxy", "handshake"]
)
def test_a_connection_that_fails_twice_is_tried_a_third_time(fal, context, fault):
    fal.fault("^CONNECT queue", times=2, **fault)
    buy(context)
    assert len(fal.jobs) == 1 and len(fal.submits) == 1


def test_a_host_that_cannot_be_reached_costs_nothing(fal, context):
    fal.fault("^CONNECT queue", "drop_before", times=99)
    with pytest.raises(answers.JobUnsent, match=r"Nothing was bought\. Look at the network"):
        buy(context)
    assert not fal.submits and newest(context).state is State.UNSENT
    fal.faults.clear()
    buy(context)
    assert len(fal.submits) == 1


def test_busy_is_waited_for_as_long_as_fal_asks(fal, context, monkeypatch):
    waits_s = []
    monkeypatch.setattr(JobMonitor, "wait", lambda monitor, seconds: waits_s.append(seconds))
    fal.fault(SUBMIT, "status", times=2, status=429, headers={"Retry-After": "20"})
    buy(context)
    assert waits_s.count(20 * context.backoff.unit_s) == 2
    assert len(fal.submits) == 3 and len(fal.jobs) == 1


def test_busy_for_ever_is_an_error(fal, context):
    fal.fault(SUBMIT, "status", times=99, status=429, body='{"detail": "too many"}')
    with pytest.raises(answers.JobRejected, match="too busy"):
        buy(context)
    assert len(fal.submits) == client.BUSY_TRIES and newest(context).state is State.REJECTED


FIELD_ERRORS = {"detail": [{"loc": ["body", "num_frames"], "msg": "too long", "input": "data:image/png;base64,AAAA"}]}
REFUSALS = {
    401: ('{"detail": "no"}', "key from the test"),
    402: ('{"detail": "pay"}', "no credit"),
    403: ('{"detail": "User is locked. Exhausted balance"}', "no credit"),
    404: ('{"detail": "not found"}', "no longer serves fal-ai/ai-avatar"),
    422: (json.dumps(FIELD_ERRORS), "for its content: HTTP 422 num_frames: too long"),
    307: ("", "refused the job"),
}


@pytest.mark.parametrize("status", REFUSALS)
def test_a_refusal_is_told_in_a_sentence_and_not_repeated(fal, context, status):
    body, message = REFUSALS[status]
    fal.fault(SUBMIT, "status", status=status, body=body, headers={"Location": "https://queue.fal.run/elsewhere"})
    with pytest.raises(RemoteError, match=message) as refusal:
        buy(context)
    assert "AAAA" not in str(refusal.value) and KEY not in str(refusal.value)
    state = State.CONTENT_REJECTED if status == 422 else State.REJECTED
    assert len(fal.submits) == 1 and newest(context).state is state


def test_a_cap_of_a_dollar_stops_145_frames_before_any_request(fal, context):
    with pytest.raises(RemoteError, match=r"about \$1\.45; MULTITALK_FAL_MAX_USD allows \$1\.00"):
        buy(replace(context, caps=Caps(run_usd=1)))
    assert fal.log == [] and newest(context) is None
    buy(replace(context, caps=Caps(run_usd=1)), num_frames=81)
    assert len(fal.submits) == 1


def test_the_cap_counts_720p_double(fal, context):
    with pytest.raises(RemoteError, match=r"2\.90 if 720p"):
        buy(replace(context, caps=Caps(run_usd=2)), resolution=Resolution.P720)
    assert fal.log == []


def test_the_days_cap_counts_what_was_bought_before(fal, context):
    fal.units = "10"  # fal bills $2.00
    context = replace(context, caps=Caps(day_usd=3))
    buy(context)
    num_calls = len(fal.log)
    with pytest.raises(RemoteError, match=r"\$2\.00 went to fal in the last 24 hours"):
        buy(context, seed=43)
    assert len(fal.log) == num_calls
    buy(context)  # what is here costs nothing
    assert len(fal.submits) == 1


def test_a_refused_job_does_not_count_against_the_day(fal, context):
    fal.fault(SUBMIT, "status", status=422, body="{}")
    with pytest.raises(answers.ContentRejected):
        buy(context)
    buy(replace(context, caps=Caps(day_usd=1.5)), seed=43)


@pytest.mark.parametrize("text", ["two", "-1", "nan"])
def test_a_cap_that_is_no_number_is_refused(text):
    with pytest.raises(ConfigError, match="MULTITALK_FAL_MAX_USD must be a number"):
        Caps.from_environment({"MULTITALK_FAL_MAX_USD": text})


def test_without_fal_client_the_pip_line_is_told(fal, context, monkeypatch):
    monkeypatch.setitem(sys.modules, "fal_client", None)
    with pytest.raises(RemoteError, match="pip install"):
        RemoteContext.open(context.private, context.output)
    with pytest.raises(RemoteError, match="pip install"):
        buy(context)
    assert fal.log == []


def test_an_unusable_ledger_stops_before_the_first_upload(fal, context):
    context.private.mkdir(parents=True)
    (context.private / "fal_ledger.sqlite3").mkdir()
    with pytest.raises(RemoteError, match="Nothing is bought without it"):
        buy(context)
    assert fal.log == []


def test_a_failed_upload_is_tried_again_and_never_elsewhere(fal, context):
    fal.fault("^POST cdn", "status", times=2, status=500)
    buy(context)
    assert len(fal.calls("^POST cdn")) == 4 and not fal.calls("gcs")


def test_an_upload_that_keeps_failing_buys_nothing_and_is_not_repeated_later(fal, context):
    fal.fault(
        "^POST cdn",
        "status",
        times=1,
        status=200,
        body='{"access_url": "https://v3.fal.media/files/in/x/portrait.png"}',
    )
    fal.fault("^POST cdn", "status", times=3, status=500)
    with pytest.raises(answers.JobUnsent, match=r"speech\.wav could not be sent"):
        buy(context)
    assert not fal.submits and not fal.calls("gcs") and newest(context) is None
    buy(context)
    assert len(fal.calls("^POST cdn")) == 5  # the portrait was there already


def test_a_key_that_the_storage_refuses_is_told_at_once(fal, context):
    fal.key = "another"
    with pytest.raises(answers.AccessDenied, match="key from the test"):
        buy(context)
    assert len(fal.log) == 1


@pytest.mark.parametrize("body", ["[]", "{}", '{"access_url": 7}', "<html>"])
def test_an_upload_without_an_address_is_a_failed_upload(fal, context, body):
    fal.fault("^POST cdn", "status", times=1, status=200, body=body)
    buy(context)
    assert len(fal.calls("^POST cdn")) == 3 and all("https" in call.body.decode() for call in fal.submits)
