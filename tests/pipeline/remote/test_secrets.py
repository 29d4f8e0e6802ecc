"""After a full run, and after every failure, the key is nowhere to be found."""

import logging
import re
import traceback
from pathlib import Path

import pytest
from multitalk_pack.pipeline.errors import RemoteError
from multitalk_pack.pipeline.remote import generate
from multitalk_pack.pipeline.remote.generate import Resume
from multitalk_pack.pipeline.remote.job import JobMonitor
from support.fake_fal import KEY, Reply
from support.remote import make_request

SECRETS = (KEY, KEY.split(":")[0], KEY.split(":")[1])
FAILED_JOB = f'{{"status": "COMPLETED", "error": "{KEY}"}}'
ECHO = f'{{"detail": "Key {KEY} is not welcome"}}'
FAULTS = {
    "none": None,
    "401": ("^POST queue", {"kind": "status", "status": 401, "body": ECHO}),
    "422": ("^POST queue", {"kind": "status", "status": 422, "body": ECHO}),
    "500": ("^POST queue", {"kind": "status", "status": 500, "body": ECHO}),
    "lost": ("^POST queue", {"kind": "drop_after"}),
    "unreachable": ("^CONNECT queue", {"kind": "drop_before", "times": 99}),
    "upload": ("^POST cdn", {"kind": "status", "status": 500, "body": ECHO, "times": 99}),
    "token": ("^POST rest", {"kind": "status", "status": 500, "body": ECHO, "times": 99}),
    "look": ("^GET queue .*status", {"kind": "status", "status": 404, "body": ECHO}),
    "failed job": (
        "^GET queue .*status",
        {"kind": "status", "status": 200, "body": FAILED_JOB},
    ),
    "result": ("^GET queue .*/requests/[^/]+$", {"kind": "status", "status": 422, "body": ECHO}),
    "file": ("^GET cdn", {"kind": "status", "status": 403, "body": ECHO}),
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_the_key_is_nowhere(fal, context, tmp_path, caplog, capfd, fault):
    caplog.set_level(logging.DEBUG)
    if fault:
        fal.fault(fault[0], **fault[1])
    told = ""
    try:
        video = generate.run(make_request(), context, Resume.AUTO, JobMonitor())
        told = f"{video!r} {video.info}"
    except RemoteError as error:
        assert fault
        told = "".join(traceback.format_exception(error)) + repr(error)
    seen = told + caplog.text + repr(context) + "".join(capfd.readouterr())
    on_disk = [path for path in tmp_path.rglob("*") if path.is_file()]
    for secret in SECRETS:
        assert secret not in seen
        assert not [path for path in on_disk if secret.encode() in path.read_bytes() or secret in path.name]
    with_key = {call.host for call in fal.log if KEY in str(call.headers)}
    assert with_key <= {"queue.fal.run", "queue.falrun.com", "rest.fal.ai", "api.fal.ai"}
    assert not any(KEY in call.path or KEY.encode() in call.body for call in fal.log)
    assert not fal.calls("gcs")


def test_fals_own_words_are_shown_without_the_key(fal, context):
    fal.result_reply = Reply(422, ECHO.encode())
    with pytest.raises(RemoteError, match=r"Key \.\.\. is not welcome"):
        generate.run(make_request(), context, Resume.AUTO, JobMonitor())


def test_the_console_shows_no_line_for_each_look(fal, context, caplog):
    caplog.set_level(logging.INFO, "httpx")
    generate.start(make_request(), context).result()
    assert not [record for record in caplog.records if record.name == "httpx"]


def test_the_shipped_workflows_hold_no_secret():
    pack = Path(__file__).resolve().parents[3]
    secret = re.compile(r'FAL_KEY *=|"api_key|"Key \S|Bearer |[0-9a-f-]{36}:[0-9a-f]{16}')
    for workflow in [*pack.glob("workflows/**/*.json"), *pack.glob("example_workflows/**/*.json")]:
        assert not secret.search(workflow.read_text(encoding="utf-8")), workflow
