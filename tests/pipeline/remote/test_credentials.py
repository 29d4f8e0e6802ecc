"""The key: where it comes from, what is one, and that no message shows it."""

import os
import socket

import pytest
from multitalk_pack.pipeline.errors import RemoteError
from multitalk_pack.pipeline.remote.credentials import KEY_FILE, find_key, private_directory

SECRET = "0123-4567:89abcdef"


def key_file(private, text=SECRET, mode=0o600):
    path = private_directory(private) / KEY_FILE
    path.write_text(text)
    path.chmod(mode)
    return path


@pytest.mark.parametrize(
    "value",
    [
        SECRET,
        f" {SECRET}\n",
        f'"{SECRET}"',
        f"'{SECRET}'",
        f"Key {SECRET}",
        f"FAL_KEY={SECRET}",
        f'FAL_KEY="{SECRET}"\r\n',
    ],
)
def test_what_comes_along_with_a_copied_key_is_taken_off(tmp_path, value):
    assert find_key(tmp_path, {"FAL_KEY": value}).value == SECRET


def test_the_sources_come_in_order(tmp_path):
    private = tmp_path / "private"
    key_file(private, "from-the-file")
    halves = {"FAL_KEY_ID": "id-half", "FAL_KEY_SECRET": " secret-half\n"}
    assert find_key(private, {}).value == "from-the-file"
    assert find_key(private, halves).value == "id-half:secret-half"
    assert find_key(private, {**halves, "FAL_KEY": SECRET}).value == SECRET


@pytest.mark.parametrize(
    "value", ["", "\n", f"{SECRET}\n{SECRET}", f"{SECRET}ä", f"Key {SECRET} x", "short", "k" * 513]
)
def test_what_is_no_key_is_refused_without_asking_fal_and_not_shown(tmp_path, value, monkeypatch):
    monkeypatch.setattr(socket, "socket", lambda *_, **__: pytest.fail("fal was asked"))
    with pytest.raises(RemoteError, match="environment variable FAL_KEY holds is not a key") as refusal:
        find_key(tmp_path, {"FAL_KEY": value})
    assert SECRET not in str(refusal.value) and "kkkk" not in str(refusal.value)


def test_no_key_tells_where_one_is_looked_for(tmp_path):
    with pytest.raises(RemoteError, match=r"FAL_KEY.*chmod 600"):
        find_key(tmp_path, {})


def test_a_key_file_that_others_may_read_is_refused(tmp_path):
    path = key_file(tmp_path / "private", mode=0o644)
    with pytest.raises(RemoteError, match=f"chmod 600 {path}"):
        find_key(path.parent, {})
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_the_key_shows_in_no_text(tmp_path):
    key = find_key(tmp_path, {"FAL_KEY": SECRET})
    assert SECRET not in repr(key) and SECRET not in str(key)
    assert len(key.fingerprint) == 8


def make_folder(path):
    path.mkdir()


NO_FILES = {
    "a folder": make_folder,
    "a pipe": os.mkfifo,
    "a dangling link": lambda path: path.symlink_to("nowhere"),
    "a circle": lambda path: path.symlink_to(path),
    "a device": lambda path: path.symlink_to("/dev/zero"),
}


@pytest.mark.parametrize("make", NO_FILES.values(), ids=NO_FILES)
def test_a_key_file_that_is_none_is_said_in_a_sentence(tmp_path, make):
    make(tmp_path / KEY_FILE)
    with pytest.raises(RemoteError, match=f"The key file {tmp_path / KEY_FILE} "):
        find_key(tmp_path, {})


def test_a_key_file_that_may_not_be_read_is_said_in_a_sentence(tmp_path, monkeypatch):
    path = key_file(tmp_path / "private")

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(type(path), "open", refuse)  # root may read everything
    with pytest.raises(RemoteError, match=r"cannot be read \(Permission denied\)"):
        find_key(path.parent, {})


def test_a_key_file_without_end_is_not_read_to_its_end(tmp_path):
    path = key_file(tmp_path / "private", "k" * 10_000_000)
    with pytest.raises(RemoteError, match="is not a key"):
        find_key(path.parent, {})
