"""Files on their way in and out: what is none is refused, and nothing is replaced but by a whole file."""

import errno
import multiprocessing
import os
import resource
import socket
import stat
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
import torch
from multitalk_pack.pipeline.errors import ConfigError, MultiTalkError
from multitalk_pack.pipeline.media import files
from multitalk_pack.pipeline.media.files import atomic_write, check_output, check_regular
from multitalk_pack.pipeline.media.picture import read_image
from multitalk_pack.pipeline.media.sound import read_sound
from multitalk_pack.pipeline.media.video import VideoWriter, check_video_path, is_video, read_video

FRAMES = torch.zeros(2, 16, 16, 3, dtype=torch.uint8)
UNFINISHED = ".multitalk-" + 32 * "0" + ".part"

posix_only = pytest.mark.skipif(os.name != "posix", reason="pipes, devices and locks of POSIX")


def write_video(path):
    with VideoWriter(path) as video:
        video.add(FRAMES)


@pytest.fixture
def special(tmp_path):
    """Names of what is no regular file."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("pipe")
    (tmp_path / "loop").symlink_to("loop")
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(tmp_path / "socket"))
    yield ["/dev/zero", "/dev/full", *(tmp_path / name for name in ("pipe", "folder", "link", "loop", "socket"))]
    server.close()


@posix_only
def test_what_is_no_regular_file_is_refused_at_once(special):
    for path in special:
        for reader in (read_image, read_sound, read_video, check_regular):
            with pytest.raises(MultiTalkError, match=r"not a file\. Name a file|cannot be opened"):
                reader(path)
        assert not is_video(path)


@pytest.mark.parametrize("name", ["nul\0l.wav", "x" * 300])
def test_names_that_no_file_has_are_refused(tmp_path, name):
    for reader in (read_image, read_sound, read_video):
        with pytest.raises(MultiTalkError, match="cannot be opened"):
            reader(tmp_path / name)
    with pytest.raises(ConfigError, match="cannot be written"):
        check_output(tmp_path / name)


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    target = tmp_path / "new" / "folder" / "file"
    with atomic_write(target) as path:
        path.write_text("first")
        assert not target.exists()
    with pytest.raises(KeyboardInterrupt), atomic_write(target) as path:
        path.write_text("second")
        raise KeyboardInterrupt
    assert target.read_text() == "first" and list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize("name", ["n" * 251 + ".mp4", "在" * 83 + ".mp4", "talk:1.mp4", "12:30/out.mp4", "http:a.mp4"])
def test_any_name_that_the_disk_allows_is_written(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    check_video_path(name)
    assert list(tmp_path.iterdir()) == []
    write_video(name)
    assert len(read_video(name).frames) == 2
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / name]


def test_an_address_is_a_name_like_any_other(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    requests = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            requests.append(self.path)

        do_GET = do_PUT = do_POST

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        address = f"http://127.0.0.1:{server.server_port}/x.mp4"
        check_video_path(address)
        write_video(address)
        assert len(read_video(address).frames) == 2
        with pytest.raises(MultiTalkError):
            read_sound(f"http://127.0.0.1:{server.server_port}/y.mp3")
    finally:
        server.shutdown()
    assert requests == [] and len(list(tmp_path.rglob("x.mp4"))) == 1


@posix_only
def test_nothing_but_a_regular_file_is_replaced(special):
    for path in special:
        before = os.lstat(path)
        with pytest.raises(ConfigError, match="cannot be written"):
            check_output(path)
        with pytest.raises(OSError), atomic_write(path):
            raise AssertionError("nothing is written")
        assert stat.S_IFMT(os.lstat(path).st_mode) == stat.S_IFMT(before.st_mode)
    os.mkfifo(special[2].with_name("pipe.mp4"))
    with pytest.raises(MultiTalkError, match="cannot be written"):
        write_video(special[2].with_name("pipe.mp4"))


@posix_only
def test_a_link_stays_one_and_its_file_is_written(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "link.mp4").symlink_to("there/real.mp4")
    check_output(tmp_path / "link.mp4")
    write_video(tmp_path / "link.mp4")
    assert (tmp_path / "link.mp4").is_symlink() and (tmp_path / "there" / "real.mp4").is_file()
    assert sorted(tmp_path.iterdir()) == [tmp_path / "link.mp4", tmp_path / "there"]


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="nothing is refused to root")
def test_read_only_files_and_folders_are_refused(tmp_path):
    (tmp_path / "old.mp4").touch(mode=0o444)
    (tmp_path / "locked").mkdir(mode=0o555)
    for path in (tmp_path / "old.mp4", tmp_path / "locked" / "new.mp4", tmp_path / "locked" / "a" / "new.mp4"):
        with pytest.raises(ConfigError, match=r"cannot be written \((the file is read-only|Permission denied)\)"):
            check_output(path)


def test_a_file_in_place_of_a_folder_and_a_full_disk_are_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"cannot be written \(Not a directory\)"):
        check_output(tmp_path / "file" / "out.mp4")
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, unlimited[1]))
        with pytest.raises(ConfigError, match=r"cannot be written \(File too large\)\. Make room"):
            check_output(tmp_path / "new" / "out.mp4")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


def test_a_mount_that_cannot_be_renamed_over_is_written_into(tmp_path, monkeypatch):
    def refuse(source, target):
        raise OSError(errno.EBUSY, "Device or resource busy")

    monkeypatch.setattr(files.os, "replace", refuse)
    with atomic_write(tmp_path / "file") as path:
        path.write_text("text")
    assert (tmp_path / "file").read_text() == "text" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("name", ["talk.webm", "talk.avi", "talk", "talk.v2", "talk.mp4.txt"])
def test_endings_of_other_kinds_are_refused(tmp_path, name):
    with pytest.raises(ConfigError, match=rf"{name} has an ending .*\.mp4, \.m4v, \.mov, \.mkv"):
        check_video_path(tmp_path / name)
    with pytest.raises(ConfigError, match="has an ending"):
        write_video(tmp_path / name)


@pytest.mark.parametrize(("suffix", "kind"), [("mp4", b"ftypisom"), ("MOV", b"ftypqt"), ("mkv", b"\x1aE\xdf\xa3")])
def test_the_ending_chooses_the_format(tmp_path, suffix, kind):
    check_video_path(tmp_path / f"talk.{suffix}")
    write_video(tmp_path / f"talk.{suffix}")
    assert kind in (tmp_path / f"talk.{suffix}").read_bytes()[:64]


def hold(folder, is_open, may_end):
    with atomic_write(folder / "out.mp4") as path:
        path.write_text("half")
        is_open.set()
        may_end.wait(60)


@posix_only
def test_what_killed_runs_leave_is_removed_by_the_next_and_what_living_ones_write_is_not(tmp_path):
    context = multiprocessing.get_context("fork")
    is_open, may_end = context.Event(), context.Event()
    writer = context.Process(target=hold, args=(tmp_path, is_open, may_end))
    writer.start()
    assert is_open.wait(60)
    (tmp_path / UNFINISHED).write_text("orphan")
    (tmp_path / ".multitalk-mine.part").write_text("of the user")
    with atomic_write(tmp_path / "other") as path:
        path.write_text("text")
    assert not (tmp_path / UNFINISHED).exists() and (tmp_path / ".multitalk-mine.part").exists()
    (alive,) = (path for path in tmp_path.iterdir() if files.UNFINISHED.fullmatch(path.name))
    writer.kill()
    writer.join()
    with atomic_write(tmp_path / "other"):
        pass
    assert not alive.exists() and not (tmp_path / "out.mp4").exists()
