"""Lines of a manifest: the command line's options by name, refused in the product's own words."""

import json
import math
import os
import re
from pathlib import Path

import pytest
from multitalk_pack.pipeline.__main__ import make_request
from multitalk_pack.pipeline.batch.manifest import InvalidLine, Job, Manifest
from multitalk_pack.pipeline.errors import ConfigError, Problems


@pytest.fixture
def read(tmp_path):
    """The jobs and invalid lines of a manifest."""

    def read(*lines):
        path = tmp_path / "manifest.jsonl"
        path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
        return list(Manifest(path).read(is_final=True))

    return read


def test_a_line_is_a_request_by_the_names_of_the_command_line(read, tmp_path):
    (job,) = read(
        {
            "id": "two", "image": "a.png", "audio": ["a.wav", "silent"], "start": [0, 2.5], "fps": "30000/1001",
            "box": [[0, 0, 50, 100], "50,0,100,100"], "size": "64x32", "in_turn": True, "demo": False, "steps": None,
            "lora": ["fast.safetensors:0.5", str(tmp_path / "other.safetensors")], "base": "base.safetensors",
        }
    )  # fmt: skip
    request = make_request(job.args, Problems())
    first, second = request.voices
    assert request.image == tmp_path / "a.png" and (first.sound, second.sound) == (tmp_path / "a.wav", None)
    assert second.start_s == 2.5 and second.box == (50, 0, 100, 100) and request.in_turn
    assert request.config.size == (32, 64) and math.isclose(request.config.fps, 29.97, abs_tol=1e-3)
    assert request.config.steps is None and job.args.base == tmp_path / "base.safetensors" and not job.args.demo
    assert job.args.lora == [str(tmp_path / "fast.safetensors:0.5"), str(tmp_path / "other.safetensors")]


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ({"colour": 1}, "There is no option colour"),
        ({"output": "../elsewhere.mp4"}, "output: the batch chooses this"),
        ({"steps": "many"}, "--steps: invalid int value: 'many'"),
        ({"steps": [4, 8]}, "steps takes one value, got 2"),
        ({"resolution": "4k"}, "invalid choice: '4k'"),
        ({"demo": "yes"}, "--demo: ignored explicit argument"),
        ({"image": True}, "--image: expected one argument"),
        ({"id": "../up"}, "An id names files"),
        ({"id": "a" * 101}, "An id names files"),
        ({"id": None}, "An id names files"),
        ("[1]", "no JSON object but list"),
        ("{'demo': true}", "The line is no JSON"),
        ('{"seed": 1, "seed": 2}', "a name stands in it twice"),
        ("[" * 100_000, "The line is no JSON"),
    ],
)
def test_a_wrong_line_says_why_and_the_next_is_a_job(read, line, error):
    wrong, job = read(line, {"demo": True})
    assert isinstance(wrong, InvalidLine) and re.search(re.escape(error), wrong.error)
    assert (job.number, job.id) == (2, "2")


def test_the_number_of_a_line_is_its_id_and_empty_lines_count(read):
    jobs = read({"demo": True}, "", {"id": 7}, {"demo": True})
    assert [job.id for job in jobs] == ["1", "7", "4"]


def test_an_id_belongs_to_its_first_line(read):
    first, second, third = read({"id": "Ann"}, {"id": "ann"}, {"id": 1})
    assert isinstance(first, Job) and isinstance(third, Job)
    assert second.error == "Line 1 has the id ann already. Give each line its own."


def test_lines_may_be_added_and_a_line_is_read_once_it_is_whole(tmp_path):
    path = tmp_path / "manifest.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"id": "a"}\r\n{"id": ')
    manifest = Manifest(path)
    assert [job.id for job in manifest.read(is_final=False)] == ["a"]
    with path.open("a") as file:
        file.write('"b"}\n{"id": "c"}')
    assert [job.id for job in manifest.read(is_final=False)] == ["b"]
    assert [job.id for job in manifest.read(is_final=True)] == ["c"]
    assert list(manifest.read(is_final=True)) == []


def test_the_digest_changes_with_the_line_and_its_files_and_with_nothing_else(read, tmp_path):
    def digest(line):
        (job,) = read(line)
        return job.digest

    sound, line = tmp_path / "a.wav", {"audio": ["a.wav"], "demo": True, "seed": 1}
    sound.write_bytes(bytes(10))
    original = digest(line)
    os.utime(sound, (0, 0))
    assert digest({"id": "other", "seed": 1, "demo": True, "audio": ["a.wav"]}) == digest(line) == original
    assert digest(line | {"seed": 2}) != original
    sound.write_bytes(bytes(11))
    assert digest(line) != original


def test_a_manifest_that_is_not_there_is_said(tmp_path):
    with pytest.raises(ConfigError, match=r"There is no file .*manifest\.jsonl"):
        Manifest(tmp_path / "manifest.jsonl")


def test_a_manifest_without_end_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path, kind in ((tmp_path / "pipe", "a pipe"), (Path("/dev/zero"), "a device"), (tmp_path, "a folder")):
        with pytest.raises(ConfigError, match=f"is {kind}, not a file"):
            Manifest(path)
