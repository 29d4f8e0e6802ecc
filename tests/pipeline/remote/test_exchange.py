"""Exchanges end: by their time, by a stop, by their size; what keeps them from starting is said in a sentence."""

import gzip
from dataclasses import replace

import pytest
from multitalk_pack.pipeline.errors import MultiTalkError, RemoteError
from multitalk_pack.pipeline.remote import answers, client, download, storage
from multitalk_pack.pipeline.remote.ledger import State
from support.fake_fal import COMPLETED
from support.remote import buy, exchange_threads, make_request, newest, remote_threads, start, until

POLL, VIDEO, UPLOAD = "^GET queue .*/status", "^GET cdn", "^POST cdn"
BOMB = gzip.compress(b'{"detail": "' + bytes(200_000_000) + b'"}', 1)


SLOW_BODIES = {
    "a poll": (POLL, lambda fal: fal.calls(POLL)),
    "the result": (r"^GET queue .*/requests/[^/]+$", lambda fal: fal.calls(r"/requests/[^/]+$")),
    "the video": (VIDEO, lambda fal: fal.calls(VIDEO)),
    "the leave to upload": ("^POST rest", lambda fal: fal.calls("^POST rest")),
    "the answer to an upload": (UPLOAD, lambda fal: fal.calls(UPLOAD)),
}


@pytest.mark.parametrize(("pattern", "is_there"), SLOW_BODIES.values(), ids=SLOW_BODIES)
@pytest.mark.parametrize("kind", ["drip", "hang"])
def test_a_stop_ends_a_slow_answer(fal, context, pattern, is_there, kind):
    fal.fault(pattern, kind, times=99, rate=1, seconds=600)
    job = start(make_request(), context)
    until(lambda: is_there(fal))
    job.monitor.stop()
    job.join(60)  # shorter than the fault
    assert isinstance(job.error, answers.JobInterrupted)
    assert not list(context.output.rglob("fal_*"))
    fal.released.set()
    until(lambda: not exchange_threads())


def test_a_slow_poll_ends_by_its_time_and_is_only_a_bad_poll(fal, context, monkeypatch):
    monkeypatch.setattr(client, "POLL_S", 0.3)
    fal.fault(POLL, "drip", times=2, rate=20)
    buy(context)
    assert len(fal.calls(POLL)) == 3


def test_a_slow_video_ends_by_its_time(fal, context, monkeypatch):
    monkeypatch.setattr(download, "DOWNLOAD_S", 0.3)
    fal.fault(VIDEO, "drip", times=99, rate=500)
    with pytest.raises(RemoteError, match=r"It took more than .* minutes\. It is paid for"):
        buy(context)
    assert len(fal.calls(VIDEO)) == download.TRIES and newest(context).state is State.SUBMITTED


def test_a_slow_cancel_does_not_keep_the_thread(fal, context, monkeypatch):
    monkeypatch.setattr(client, "CANCEL_S", 0.2)
    fal.script = [{"status": "IN_PROGRESS"}]
    fal.fault("^PUT queue", "drip", times=9, rate=20)
    job = start(make_request(), context)
    until(lambda: fal.calls(POLL))
    job.monitor.stop()
    until(lambda: not remote_threads())
    assert len(fal.cancels) == 2 and newest(context).state is State.CANCEL_REQUESTED


BOMBS = {
    "a bomb": {"body": BOMB, "headers": {"Content-Encoding": "gzip"}},
    "a long answer": {"body": b" " * (2 * 2**20)},
    "an encoding that was not asked for": {"body": b"x", "headers": {"Content-Encoding": "br"}},
    "damaged": {"body": b"x", "headers": {"Content-Encoding": "gzip"}},
}


@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS)
@pytest.mark.parametrize("pattern", ["^POST rest", UPLOAD, POLL, r"^GET queue .*/requests/[^/]+$"])
def test_an_answer_is_bounded_before_it_is_decompressed(fal, context, bomb, pattern):
    fal.fault(pattern, "status", status=200, **bomb)
    buy(context)
    assert len(fal.submits) == 1 and len(fal.calls(pattern)) >= 2


def test_a_bomb_takes_no_memory(fal, context):
    resource = pytest.importorskip("resource")
    buy(context)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    fal.fault(UPLOAD, "status", times=2, status=200, **BOMBS["a bomb"])
    buy(context, shade=0.25)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 1024  # kilobytes


def test_a_packed_answer_is_read(fal, context):
    status = gzip.compress(b'{"status": "COMPLETED"}')
    fal.fault(POLL, "status", status=200, body=status, headers={"Content-Encoding": "gzip"})
    buy(context)
    assert len(fal.calls(POLL)) == 1


def test_an_answer_to_the_purchase_that_cannot_be_read_is_a_lost_answer(fal, context):
    fal.fault("^POST queue", "status", status=200, **BOMBS["a bomb"])
    with pytest.raises(answers.JobUncertain, match="more than 1048576 bytes"):
        buy(context)
    assert len(fal.submits) == 1


def test_an_upload_over_a_slow_line_is_one_upload(fal, context, monkeypatch):
    """Its answer comes after more time than an answer may take, because the bytes are still on their way."""
    monkeypatch.setattr(storage, "ANSWER_S", 0.5)
    monkeypatch.setattr(storage, "SLOWEST_BYTES_PER_S", 20_000)
    texts = []
    fal.fault("^POST cdn .*", "slow_read", times=2, rate=60_000)
    job = start(make_request(), context)
    while job.alive:
        texts.append(job.monitor.text)
        job.join(0.01)
    job.result()
    assert len(fal.calls(UPLOAD)) == 2 and any("of 0.1 MB" in text for text in texts)


def test_an_upload_that_makes_no_progress_is_given_up(fal, context, monkeypatch):
    monkeypatch.setattr(storage, "ANSWER_S", 0.2)
    monkeypatch.setattr(storage, "SLOWEST_BYTES_PER_S", 1e9)
    fal.fault(UPLOAD, "slow_read", times=99, rate=100)
    with pytest.raises(answers.JobUnsent, match=r"portrait\.png could not be sent to fal .no end within"):
        buy(context)
    assert len(fal.calls("^CONNECT cdn")) <= 3 and not fal.submits and newest(context) is None


REFUSALS = {
    "billing": (
        403,
        "User is locked. Reason: Exhausted balance.",
        answers.JobRejected,
        r"no credit.*Exhausted balance",
    ),
    "payment": (402, "Payment required", answers.JobRejected, r"no credit.*Payment required"),
    "an admin": (403, "User is locked. Reason: Admin lock.", answers.AccessDenied, r"this account.*Admin lock"),
    "a country": (403, "Not available in your location", answers.AccessDenied, r"this account.*in your location"),
    "a scope": (403, "The key lacks a scope", answers.AccessDenied, r"key from the test.*lacks a scope"),
    "no word": (403, "", answers.AccessDenied, r"key from the test .HTTP 403."),
    "a key": (401, "Invalid", answers.AccessDenied, r"key from the test .HTTP 401 Invalid."),
}
EXCHANGES = {"the upload": "^POST rest", "the purchase": "^POST queue", "a poll": POLL}


@pytest.mark.parametrize(("status", "detail", "error", "message"), REFUSALS.values(), ids=REFUSALS)
@pytest.mark.parametrize("exchange", EXCHANGES.values(), ids=EXCHANGES)
def test_a_refusal_of_the_account_is_in_fals_own_words(fal, context, status, detail, error, message, exchange):
    fal.fault(exchange, "status", status=status, body=f'{{"detail": "{detail}"}}', times=99)
    with pytest.raises(error, match=message):
        buy(context)
    assert len(fal.calls(exchange)) == 1 and len(fal.submits) == (exchange != "^POST rest")
    row = newest(context)
    assert (row and row.state) is {"^POST rest": None, "^POST queue": State.REJECTED, POLL: State.SUBMITTED}[exchange]


VARIABLES = {
    "an unknown proxy": ("ALL_PROXY", "socks://user:pass-word@127.0.0.1:1"),
    "a proxy in small letters": ("all_proxy", "socks://user:pass-word@127.0.0.1:1"),
    "a password that is none of an address": ("HTTPS_PROXY", "http://user:pass-word/1@127.0.0.1:1"),
    "no proxy": ("HTTPS_PROXY", "nonsense://127.0.0.1:1"),
    "an address that is none": ("NO_PROXY", "fe80::/10"),
    "no file of certificates": ("SSL_CERT_FILE", "/nowhere/pass-word.pem"),
}


@pytest.mark.parametrize(("name", "value"), VARIABLES.values(), ids=VARIABLES)
def test_a_variable_that_cannot_be_used_is_named_and_nothing_is_sent(fal, context, monkeypatch, name, value):
    if name == "NO_PROXY":
        monkeypatch.setenv("ALL_PROXY", f"http://127.0.0.1:{fal.port}")
    monkeypatch.setenv(name, value)
    with pytest.raises(RemoteError, match=rf"variable {name} cannot be used .*Nothing was sent") as refusal:
        buy(context)
    assert (
        "pass-word" not in str(refusal.value).replace("/nowhere/pass-word.pem", "")
        and fal.log == []
        and newest(context) is None
    )


def test_a_file_of_certificates_that_is_none_is_named(fal, context, monkeypatch, tmp_path):
    (tmp_path / "ca.pem").write_text("no certificate")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    with pytest.raises(RemoteError, match="variable SSL_CERT_FILE cannot be used"):
        buy(context)


def test_socks_without_its_package_is_said_with_the_pip_line(fal, context, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "socksio", None)
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:1")
    with pytest.raises(RemoteError, match=r'ALL_PROXY cannot be used .*pip install "httpx\[socks\]"'):
        buy(context)


@pytest.mark.parametrize("after_s", [0, 1])
def test_a_certificate_that_is_not_trusted_is_named(fal, context, monkeypatch, after_s):
    """As where a proxy reads TLS traffic: at the first word with fal, and when the video is fetched."""
    if after_s:
        fal.script = [{"status": "IN_PROGRESS"}]
        job = start(make_request(), context)
        until(lambda: fal.calls(POLL))
        monkeypatch.delenv("SSL_CERT_FILE")
        fal.script = [COMPLETED]
    else:
        monkeypatch.delenv("SSL_CERT_FILE")
        job = start(make_request(), context)
    with pytest.raises(RemoteError, match=r"certificate of the server is not trusted: .*SSL_CERT_FILE") as failure:
        job.result()
    assert "Nothing was bought" in str(failure.value) or "It is paid for" in str(failure.value)
    assert len(fal.submits) == after_s


def test_the_connection_is_closed_whatever_happens(fal, context):
    with pytest.raises(MultiTalkError):
        buy(replace(context, output=context.private / "fal_ledger.sqlite3"))
    until(lambda: fal.open_connections == 0 and not exchange_threads())
