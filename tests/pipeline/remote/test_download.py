"""The finished video: only from fal's hosts, only a video, only whole, and never half-written."""

import errno
import os

import pytest
from multitalk_pack.pipeline.errors import MultiTalkError, RemoteError
from multitalk_pack.pipeline.remote import download
from multitalk_pack.pipeline.remote.answers import JobUncertain
from multitalk_pack.pipeline.remote.download import check_url, file_hosts
from multitalk_pack.pipeline.remote.ledger import State
from multitalk_pack.pipeline.remote.purchase import Resume
from support.fake_fal import KEY
from support.media import damage_picture, write_video
from support.remote import buy, newest

VIDEO = "^GET cdn"


def download_error(fal, context, match="."):
    """Buys, expects an error after the purchase, and checks that nothing is left but the paid row."""
    with pytest.raises(RemoteError, match=match) as error:
        buy(context)
    assert not [path for path in context.output.rglob("*") if path.is_file()]
    row = newest(context)
    assert row.state is State.SUBMITTED and len(fal.submits) == 1 and not fal.cancels
    return str(error.value)


RECOVERABLE = {
    "cut": {"kind": "truncate", "times": 2},
    "dropped": {"kind": "drop_before", "times": 2},
    "500": {"kind": "status", "status": 500, "times": 4},
    "not there yet": {"kind": "status", "status": 404, "times": 2},
    "cut without a length": {"kind": "short", "times": 2},
    "empty": {"kind": "status", "status": 200, "times": 2},
}


@pytest.mark.parametrize("fault", RECOVERABLE.values(), ids=RECOVERABLE)
@pytest.mark.parametrize("has_size", [True, False])
def test_a_bad_transfer_is_tried_again(fal, context, fault, has_size):
    if has_size:
        fal.result["video"]["file_size"] = len(fal.video)
    fal.fault(VIDEO, **fault)
    assert buy(context).path.read_bytes() == fal.video
    assert len(fal.calls(VIDEO)) == 1 + fault["times"] and len(fal.submits) == 1


@pytest.mark.parametrize("fault", RECOVERABLE.values(), ids=RECOVERABLE)
def test_a_transfer_that_stays_bad_leaves_nothing(fal, context, fault):
    fal.fault(VIDEO, **{**fault, "times": 99})
    assert "paid for" in download_error(fal, context)
    assert len(fal.calls(VIDEO)) == (3 if fault.get("status") == 404 else 5)


NO_VIDEOS = {
    "a page": (b"<html>login</html>", {"Content-Type": "text/html"}),
    "JSON": (b'{"detail": "expired"}', {"Content-Type": "application/json"}),
    "a page in disguise": (b"<html>login</html>", {"Content-Type": "video/mp4"}),
    "a program": (b"MZ\x90\0" + bytes(4000), {"Content-Type": "video/mp4"}),
    "gzip": (b"\x1f\x8b\x08\0" + bytes(4000), {"Content-Type": "video/mp4", "Content-Encoding": "gzip"}),
}


@pytest.mark.parametrize(("body", "headers"), NO_VIDEOS.values(), ids=NO_VIDEOS)
def test_what_is_no_video_is_refused_at_once(fal, context, body, headers):
    fal.video, fal.video_headers = body, headers
    download_error(fal, context, "not a video")
    assert len(fal.calls(VIDEO)) == 1


def test_what_only_begins_like_a_video_is_refused(fal, context):
    fal.video = b"\0\0\0\x18ftypisom" + bytes(4000)
    download_error(fal, context, "cannot be read as a video")


def test_more_than_the_cap_is_refused_by_header_and_by_count(fal, context, monkeypatch):
    monkeypatch.setattr(download, "MAX_BYTES", len(fal.video) // 4)
    download_error(fal, context, "no video of this model has")
    fal.fault(VIDEO, "short", times=9)  # sends no length
    download_error(fal, context, "no video of this model has")


HOSTILE = [
    "http://v3.fal.media/files/out/result.mp4",
    "file:///etc/passwd",
    "ftp://v3.fal.media/x",
    "https://169.254.169.254/latest/meta-data",
    "https://127.0.0.1/x",
    "https://[::1]/x",
    "https://localhost/x",
    "https://fal.media.evil.example/x",
    "https://notfal.media/x",
    "https://evil.example/#.fal.media",
    "https://evil.example/?.fal.media",
    "https://evil.example\\@v3.fal.media/x",
    "https://v3.fal.media@evil.example/x",
    "https://user:word@v3.fal.media/x",
    "https://v3.fal.media:22/x",
    "https://queue.fal.run/x",
    "https://v3.fal.media:port/x",
    "data:video/mp4;base64,AAAA",
]


@pytest.mark.parametrize("url", [*HOSTILE, "https:///x", "//v3.fal.media/x", "x"])
def test_a_hostile_address_is_not_asked(fal, context, url):
    fal.result = {"video": {"url": url}}
    download_error(fal, context, "not fetched")
    assert not fal.calls("^(GET|CONNECT) (?!queue)")


@pytest.mark.parametrize("url", HOSTILE)
def test_a_redirect_to_a_hostile_address_is_not_followed(fal, context, url):
    fal.redirects["/files/out/result.mp4"] = url
    with pytest.raises(RemoteError) as error:
        buy(context)
    assert not isinstance(error.value, JobUncertain)
    assert {call.host for call in fal.calls("^GET (?!queue)")} == {"v3.fal.media"}
    assert not [path for path in context.output.rglob("*") if path.is_file()]


def test_a_redirect_within_the_file_hosts_is_followed_and_a_circle_is_not(fal, context):
    fal.redirects["/files/out/result.mp4"] = "https://v3b.fal.media/files/there.mp4"
    assert buy(context).path.exists()
    fal.redirects["/files/there.mp4"] = "https://v3b.fal.media/files/there.mp4"
    with pytest.raises(RemoteError, match="redirected more than 3 times"):
        buy(context, Resume.ALWAYS_NEW)


def test_a_host_can_be_allowed(monkeypatch):
    monkeypatch.setenv("MULTITALK_FAL_FILE_HOSTS", " Files.Example.org ,")
    hosts = file_hosts()
    assert check_url("https://a.files.example.org:443/x", hosts).host == "a.files.example.org"
    assert check_url("https://V3.FAL.MEDIA./x", hosts)
    with pytest.raises(RemoteError, match="not fetched"):
        check_url("https://example.org/x", hosts)


@pytest.mark.parametrize(
    "result", [{}, {"video": "x"}, {"video": {"url": 7}}, {"video": {"url": "https://" + "v" * 2048}}]
)
def test_a_result_without_a_video_is_told(fal, context, result):
    fal.result = {"seed": 1, **result}
    download_error(fal, context, "names no video")


@pytest.mark.parametrize("request_id", ["../../../../escaped", "a/b", "x" * 200, "c:\\d", "ü"])
def test_the_file_lies_in_the_output_folder_whatever_it_is_called(fal, context, request_id):
    fal.new_id = lambda: request_id
    fal.result["video"]["file_name"] = "../../x.mp4"
    path = buy(context).path
    assert path.parent == context.output.resolve() / "multitalk" and path.suffix == ".mp4" and len(path.name) == 81
    assert path.read_bytes() == fal.video


def test_a_folder_that_leads_elsewhere_is_refused(fal, context, tmp_path):
    context.output.mkdir()
    (tmp_path / "elsewhere").mkdir()
    (context.output / "multitalk").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RemoteError, match="leads out of the output folder"):
        buy(context)


def test_the_addresses_in_fals_answer_are_not_used(fal, context):
    fal.submit_extra = dict.fromkeys(("status_url", "response_url", "cancel_url"), "https://evil.example/x")
    buy(context)
    assert "evil.example" not in {call.host for call in fal.log}


def test_the_seed_and_the_units_may_be_missing_or_nonsense(fal, context):
    fal.units, fal.result = "many", {"video": fal.result["video"], "seed": 10**40}
    video = buy(context)
    assert (video.seed, video.units, video.billed_usd) == (42, None, None) and "no billed units" in video.info


def test_the_file_host_never_sees_the_key(fal, context):
    buy(context)
    assert all("authorization" not in call.headers for call in fal.calls(VIDEO))
    assert not [call for call in fal.calls("^(GET|POST) cdn") if KEY in str(call.headers)]


def test_a_size_that_the_result_overstates_is_not_believed(fal, context):
    fal.result["video"]["file_size"] = len(fal.video) + 1
    assert buy(context).path.read_bytes() == fal.video and len(fal.calls(VIDEO)) == 1


def test_a_length_that_comes_twice_is_the_files_whatever_the_result_says(fal, context):
    """Without a Content-Length a connection that was cut looks like one that was done."""
    fal.result["video"]["file_size"] = len(fal.video) + 1
    fal.fault(VIDEO, "no_length", times=9)
    assert buy(context).path.read_bytes() == fal.video and len(fal.calls(VIDEO)) == 2


@pytest.mark.parametrize("has_length", [True, False])
def test_a_bought_video_with_a_damaged_packet_is_kept_with_a_word(fal, context, tmp_path, has_length):
    damaged = write_video(tmp_path / "damaged.mp4", 50, 25)
    damage_picture(damaged, 20)
    fal.video = damaged.read_bytes()
    if not has_length:
        fal.fault(VIDEO, "no_length", times=9)
    video = buy(context)
    assert video.path.read_bytes() == fal.video and "1 packets of the picture damaged" in str(video.properties)
    assert len(fal.calls(VIDEO)) == (1 if has_length else 2)


@pytest.mark.parametrize("status", [300, 302, 304, 307])
def test_a_redirect_without_an_address_is_a_refusal(fal, context, status):
    fal.fault(VIDEO, "status", times=99, status=status)
    assert f"refused the video (HTTP {status})" in download_error(fal, context)


def make_file(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("notes")


FOLDERS = {
    "the output folder is a file": make_file,
    "our folder is a file": lambda output: make_file(output / "multitalk"),
    "a link that leads nowhere": lambda output: output.symlink_to("/proc/nowhere"),
}


@pytest.mark.parametrize("make", FOLDERS.values(), ids=FOLDERS)
def test_a_folder_that_cannot_be_written_is_said_before_anything_is_bought(fal, context, make):
    make(context.output)
    with pytest.raises(MultiTalkError, match=r"cannot be written|is not a folder|leads out"):
        buy(context)
    assert not fal.submits and not fal.calls("^POST cdn")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_disk_that_takes_no_video_is_said_before_anything_is_bought(fal, context, monkeypatch, number):
    def refuse(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(MultiTalkError, match=rf"cannot be written \({os.strerror(number)}\)"):
        buy(context)
    assert not fal.submits and not fal.calls("^POST cdn")


def test_a_disk_that_fills_up_meanwhile_leaves_the_paid_row(fal, context, monkeypatch):
    fetch_once = download._fetch_once

    def refuse(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(download, "_fetch_once", refuse)
    message = download_error(fal, context, r"could not be written to .*No space left")
    assert next(iter(fal.jobs)) in message and "paid for" in message
    monkeypatch.setattr(download, "_fetch_once", fetch_once)
    assert buy(context).path.exists() and len(fal.submits) == 1
