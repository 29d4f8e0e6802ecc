"""After a full run, and after every failure, the key is nowhere to be found, nor any part of it."""

import base64
import logging
import re
import string
import traceback
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from multitalk_pack.pipeline.errors import RemoteError
from multitalk_pack.pipeline.remote.redaction import Redactor
from support.fake_fal import COMPLETED, KEY, Reply
from support.remote import buy, make_request, start

HALVES = KEY.split(":")
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
    "poll": ("^GET queue .*status", {"kind": "status", "status": 404, "body": ECHO}),
    "failed job": ("^GET queue .*status", {"kind": "status", "status": 200, "body": FAILED_JOB}),
    "result": ("^GET queue .*/requests/[^/]+$", {"kind": "status", "status": 422, "body": ECHO}),
    "file": ("^GET cdn", {"kind": "status", "status": 403, "body": ECHO}),
    "type of the file": ("^GET cdn", {"kind": "status", "status": 200, "headers": {"Content-Type": f"text/{KEY}"}}),
}
FORMS = {
    "whole": KEY,
    "header": f"Key {KEY}",
    "first half": HALVES[0],
    "second half": HALVES[1],
    "sixteen characters": KEY[13:29],
    "percent-encoded": quote(KEY, safe=""),
    "percent-encoded throughout": "".join(f"%{ord(character):02x}" for character in KEY),
    "twice percent-encoded": quote(quote(KEY, safe=""), safe=""),
    "base64": base64.b64encode(KEY.encode()).decode(),
    "base64 among other bytes": base64.b64encode(f"user:{KEY}".encode()).decode(),
    "base64 for addresses": base64.urlsafe_b64encode(f"x{KEY}".encode()).decode(),
}


def visible(text: str) -> list[str]:
    """The parts of the key, in any form, that `text` shows."""
    parts = [KEY[start : start + 16] for start in range(len(KEY) - 15)]
    encoded = [quote(part, safe="") for part in parts]
    encoded += ["".join(f"%{ord(character):02x}" for character in part) for part in parts]
    encoded += [base64.b64encode(KEY.encode()[start : start + 18]).decode() for start in range(len(KEY) - 17)]
    return [part for part in {*parts, *encoded} if part.lower() in text.lower()]


def all_outputs(fal, context, tmp_path, caplog, capfd) -> str:
    """Everything that leaves a run: video, error and traceback, progress, log, console, and the disk."""
    caplog.set_level(logging.DEBUG)
    job = start(make_request(), context)
    texts = set()
    while job.alive:
        texts |= {job.monitor.text, *job.monitor.notes}
        job.join(0.005)
    try:
        video = job.result()
        output = f"{video!r} {video.info}"
    except RemoteError as error:
        output = "".join(traceback.format_exception(error)) + repr(error)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    disk = "".join(f"{path}\n" + path.read_bytes().decode("latin-1") for path in files)
    return "\n".join([output, *texts, caplog.text, repr(context), *capfd.readouterr(), disk])


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_the_key_is_nowhere(fal, context, tmp_path, caplog, capfd, fault):
    if fault:
        fal.fault(fault[0], **fault[1])
    assert not visible(all_outputs(fal, context, tmp_path, caplog, capfd))
    with_key = {call.host for call in fal.log if KEY in str(call.headers)}
    assert with_key <= {"queue.fal.run", "queue.falrun.com", "rest.fal.ai", "api.fal.ai"}
    assert not any(KEY in call.path or KEY.encode() in call.body for call in fal.log)
    assert not fal.calls("gcs")


ECHOES = {
    "a log line": lambda fal, form: vars(fal).update(
        script=[{"status": "IN_PROGRESS", "logs": [{"message": f"at {form} now", "timestamp": "1"}]}] * 5 + [COMPLETED]
    ),
    "an error": lambda fal, form: vars(fal).update(script=[{**COMPLETED, "error": f"bad {form}"}]),
    "a refusal": lambda fal, form: fal.fault("^POST queue", "status", status=403, body=f'{{"detail": "no {form}"}}'),
    "the result's address": lambda fal, form: fal.result["video"].update(url=f"https://v3.fal.media/{form}/x.mp4"),
    "a foreign address": lambda fal, form: fal.result["video"].update(url=f"https://evil.example/{form}"),
    "a redirect": lambda fal, form: fal.redirects.update({"/files/out/result.mp4": f"https://evil.example/{form}"}),
    "the request id": lambda fal, form: vars(fal).update(new_id=lambda: form),
    "the cancel": lambda fal, form: fal.fault("^PUT queue", "status", status=200, body=f'{{"status": "{form}"}}'),
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("echo", ECHOES.values(), ids=ECHOES)
def test_a_key_that_comes_back_is_not_shown(fal, context, tmp_path, caplog, capfd, echo, form):
    echo(fal, form)
    assert not visible(all_outputs(fal, context, tmp_path, caplog, capfd))


@given(
    key=st.text(string.ascii_letters + string.digits + "-_:", min_size=8, max_size=80),
    before=st.text(max_size=20),
    after=st.text(max_size=20),
    data=st.data(),
)
@settings(max_examples=200, deadline=None)
def test_no_part_of_sixteen_characters_survives(key, before, after, data):
    start = data.draw(st.integers(0, max(0, len(key) - 16)))
    part = key[start : start + data.draw(st.integers(16, 80))]
    redacted = Redactor(key).text(f"{before}{part}{after}")
    assert all(part[index : index + 16] not in redacted for index in range(max(1, len(part) - 15)))


@given(st.text(max_size=60))
@settings(max_examples=200, deadline=None)
def test_a_text_without_secrets_stays_as_it_is(text):
    if "://" not in text and "Key " not in text:
        assert Redactor(KEY).text(text) == text


def test_the_header_is_taken_out_with_whatever_follows_it():
    text = Redactor(KEY).text(f"Illegal header value b'Key {KEY}\\n'; also {KEY}")
    assert text == "Illegal header value b'Key ... also ..."


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("http://user:word@proxy:3128/x", "http://...@proxy:3128/x"),
        ("https://user:w@rd@host/x?y=a@b", "https://...@host/x?y=a@b"),
        ("socks5://word@host and mail@host", "socks5://...@host and mail@host"),
    ],
)
def test_passwords_of_addresses_are_not_shown(text, expected):
    assert Redactor(KEY).text(text) == expected


def test_the_password_of_a_result_is_not_shown(fal, context):
    fal.result["video"]["url"] = "https://user:pass-word@v3.fal.media/x.mp4"
    with pytest.raises(RemoteError, match="not fetched") as refusal:
        buy(context)
    assert "pass-word" not in str(refusal.value)


def test_the_password_of_a_proxy_is_not_shown(fal, context, monkeypatch, caplog):
    monkeypatch.setenv("HTTPS_PROXY", f"http://user:pass-word@127.0.0.1:{fal.port}")
    fal.fault("^CONNECT", "status", status=407, times=99)
    with pytest.raises(RemoteError) as refusal:
        buy(context)
    assert "pass-word" not in str(refusal.value) + caplog.text


def test_fals_own_words_are_shown_without_the_key(fal, context):
    fal.result_reply = Reply(500, ECHO.encode())
    with pytest.raises(RemoteError, match=r"Key \.\.\. is not welcome"):
        buy(context)


def test_the_console_shows_no_line_for_each_poll(fal, context, caplog):
    caplog.set_level(logging.INFO, "httpx")
    start(make_request(), context).result()
    assert not [record for record in caplog.records if record.name == "httpx"]


def test_the_shipped_workflows_hold_no_secret():
    pack = Path(__file__).resolve().parents[3]
    secret = re.compile(r'FAL_KEY *=|"api_key|"Key \S|Bearer |[0-9a-f-]{36}:[0-9a-f]{16}')
    for workflow in [*pack.glob("workflows/**/*.json"), *pack.glob("example_workflows/**/*.json")]:
        assert not secret.search(workflow.read_text(encoding="utf-8")), workflow
