"""Damaged, foreign and dangerous files."""

import contextlib
import json
import os
import pickle
import socket
import struct
import zipfile
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from multitalk_pack.pipeline.errors import WeightsError
from multitalk_pack.pipeline.weights.checkpoint import open_file, open_source
from multitalk_pack.pipeline.weights.tokenizer import find_tokenizer
from safetensors.torch import save_file


class RunsCode:
    """A pickle that would make a file when it is opened."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self.trace),)


@pytest.fixture
def safe(tmp_path):
    save_file({"a": torch.arange(6.0).view(2, 3), "b": torch.ones(4, dtype=torch.float16)}, tmp_path / "x.safetensors",
              {"note": "hello"})  # fmt: skip
    return tmp_path / "x.safetensors"


@pytest.fixture
def packed(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "wan")
    writer.add_tensor("a", np.arange(6, dtype=np.float32).reshape(2, 3))
    writer.add_tensor("patch", np.ones((2, 3, 1, 2, 2), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tmp_path / "x.gguf"


def test_contents_of_a_file(safe, packed):
    source = open_source(safe)
    assert source.entries["a"].shape == (2, 3) and source.entries["b"].dtype == "F16" and source.num_bytes == 32
    assert source.metadata == {"note": "hello"}
    assert torch.equal(source.get("a"), torch.arange(6.0).view(2, 3))
    blocks = open_source(packed)
    assert blocks.entries["patch"].shape == (2, 3, 1, 2, 2) and blocks.metadata["general.architecture"] == "wan"
    assert torch.equal(blocks.get("a"), torch.arange(6.0).view(2, 3))


@pytest.mark.parametrize("name", ["x.gguf", "x.bin", "x.pth", "x"])
def test_the_ending_does_not_matter(safe, name):
    moved = safe.rename(safe.with_name(name))
    assert set(open_source(moved).entries) == {"a", "b"}


def test_unaligned_headers_are_read(safe):
    header = json.dumps({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    header += b" " * (3 - (8 + len(header)) % 4 + 4)
    safe.write_bytes(struct.pack("<Q", len(header)) + header + np.array([1, 2], dtype=np.float32).tobytes())
    assert open_source(safe).get("a").tolist() == [1, 2]


def safetensors_of(header):
    return struct.pack("<Q", len(header)) + header


def gguf_of(value):
    """One field without a name."""
    return b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 0) + value


def array(kind, length):
    return struct.pack("<IIQ", 9, kind, length)


DAMAGED = {
    "empty": (b"", "is empty"),
    "LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", r"Git-LFS pointer \(56 bytes\)"),
    "web page": (b"<!DOCTYPE html><html>", "is a web page"),
    "web page, other spelling": (b"\n <HTML>", "is a web page"),
    "text": (b"hello, I am no weights file at all", "no weights file"),
    "header too long": (struct.pack("<Q", 10**6) + b'{"a"', "ends inside its header"),
    "header of millions of values": (safetensors_of(b'{"a":[' + b"[]," * 1_100_000 + b"0]}"), "header cannot be read"),
    "GGUF with millions of fields": (b"GGUF" + struct.pack("<IQQ", 3, 0, 3_000_000) + bytes(99), "header breaks off"),
    "GGUF with millions of values": (gguf_of(array(0, 3_000_000) + bytes(3_000_000)), "header breaks off"),
    "GGUF with a text that is not there": (gguf_of(struct.pack("<IQ", 8, 2**40)), "header breaks off"),
    "GGUF with a tensor of many axes": (b"GGUF" + struct.pack("<IQQQI", 3, 1, 0, 0, 2**30) + bytes(99),
                                        "header breaks off"),
    "header no JSON": (struct.pack("<Q", 5) + b"{abc}", "header cannot be read"),
    "header a list": (struct.pack("<Q", 20) + b'{"a": [1, 2, 3]     }', "header cannot be read"),
    "GGUF header": (b"GGUF" + struct.pack("<IQQ", 3, 5, 5), "header breaks off"),
    "old GGUF": (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "GGUF version 1"),
    "half a zip": (b"PK\x03\x04" + b"\0" * 50, "no PyTorch weights file"),
    "half a pickle": (b"\x80\x02}q\x00", "(incomplete|needs to run code)"),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_files_are_named(name, tmp_path):
    content, message = DAMAGED[name]
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(WeightsError, match=message):
        open_source(tmp_path / "model.safetensors")


def test_a_header_has_at_most_what_the_format_allows(tmp_path):
    with (tmp_path / "x.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", 100_000_001) + b"{")
        file.truncate(100_000_100)  # a hole, which takes no room
    with pytest.raises(WeightsError, match=r"its header of 100.0 MB is larger than the format's limit"):
        open_source(tmp_path / "x.safetensors")


@pytest.mark.parametrize("kind", ["safe", "packed"])
def test_a_cut_download_says_how_much_there_is(kind, request):
    path = request.getfixturevalue(kind)
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(WeightsError, match=r"is incomplete: its header says \d+ bytes, the file has \d+ bytes"):
        open_source(path)


@settings(max_examples=200, deadline=None)
@given(changes=st.lists(st.tuples(st.integers(0, 70), st.integers(0, 255)), max_size=4), length=st.integers(0, 100))
def test_no_damage_shows_as_another_error(changes, length, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    save_file({"a": torch.ones(3)}, folder / "x.safetensors")
    content = bytearray((folder / "x.safetensors").read_bytes())
    for place, value in changes:
        content[place] = value
    (folder / "y.safetensors").write_bytes(bytes(content[:length]))
    with contextlib.suppress(WeightsError):
        source = open_source(folder / "y.safetensors")
        assert all(torch.is_tensor(source.get(key)) for key in source.entries)


@pytest.mark.parametrize("length", [0x80, 0x80 + 0x4B * 256, 0x50 + 0x4B * 256])
def test_a_header_length_is_not_taken_for_another_formats_sign(length, tmp_path):
    header = json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode().ljust(length)
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", length) + header + bytes(4))
    assert open_source(tmp_path / "x.safetensors").get("a").tolist() == [0]


@pytest.mark.parametrize("zipped", [True, False])
def test_no_code_is_run(zipped, tmp_path):
    trace = tmp_path / "trace"
    torch.save({"a": torch.ones(2), "b": RunsCode(trace)}, tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(WeightsError, match="needs to run code to open; convert it to safetensors"):
        open_source(tmp_path / "x.pth")
    (tmp_path / "y.pth").write_bytes(pickle.dumps(RunsCode(trace)))
    with pytest.raises(WeightsError):
        open_source(tmp_path / "y.pth")
    assert not trace.exists()


def save_zip(path, pickled, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/version", "3\n")


def test_a_compressed_zip_is_refused(tmp_path):
    save_zip(tmp_path / "x.pth", b"\x80\x02]." + bytes(1000), zipfile.ZIP_DEFLATED)
    with pytest.raises(WeightsError, match=r"x.pth is a compressed archive, which PyTorch does not write"):
        open_source(tmp_path / "x.pth")


@pytest.mark.parametrize("is_zip", [True, False])
def test_a_tensor_that_is_made_of_a_size_alone_is_refused(is_zip, tmp_path):
    """Torch carries out `torch.FloatTensor(10**9)`: 4 GB of whatever stands in memory, from a file of a few bytes."""
    state = b"\x80\x02}X\x01\x00\x00\x00actorch\nFloatTensor\nJ" + struct.pack("<i", 10**9) + b"\x85Rs."
    if is_zip:
        save_zip(tmp_path / "x.pth", state)
    else:
        (tmp_path / "x.pth").write_bytes(state)
    with pytest.raises(WeightsError, match=r"is incomplete or no PyTorch weights file|needs to run code"):
        open_source(tmp_path / "x.pth")


EMPTY_SET = b"\x8f"
INFLATING = {  # pickles whose objects take far more than their bytes
    "many objects": b"\x80\x02(" + EMPTY_SET * 300_000 + b"l.",
    "bytes from a number": b"\x80\x02cbuiltins\nbytearray\nJ\x00\x00\x00\x7f\x85R.",
    "copies of a text": b"\x80\x02c_codecs\nencode\nX\x04\x00\x00\x00text\x85R.",
    "a long text": b"\x80\x02X" + struct.pack("<I", 2**25) + bytes(2**25) + b".",
}


@pytest.mark.parametrize("is_zip", [True, False])
@pytest.mark.parametrize("name", INFLATING)
def test_a_pickle_of_more_than_tensors_is_refused_before_it_is_loaded(name, is_zip, tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "load", lambda *args, **options: pytest.fail("it was loaded"))
    if is_zip:
        save_zip(tmp_path / "x.pth", INFLATING[name])
    else:
        (tmp_path / "x.pth").write_bytes(INFLATING[name])
    with pytest.raises(WeightsError, match=r"needs to run code|is incomplete or no PyTorch weights file"):
        open_source(tmp_path / "x.pth")


def test_a_tensor_of_more_numbers_than_its_file_is_left_out(tmp_path):
    torch.save({"a": torch.ones(2, 3).t(), "b": torch.ones(1).expand(10**9)}, tmp_path / "x.pth")
    assert set(open_source(tmp_path / "x.pth").entries) == {"a"}


def special_file(kind):
    """A pipe, a socket or a device in this folder."""
    if kind == "a pipe":
        os.mkfifo("special")
    elif kind == "a socket":
        with socket.socket(socket.AF_UNIX) as connection:
            connection.bind("special")
    return Path("/dev/zero" if kind == "a device" else "special").absolute()


LINKS = {
    "weights": "", "in a folder": "model.safetensors", "shard": "model-00001-of-00001.safetensors",
    "index": "model.safetensors.index.json", "config.json": "config.json", "tokenizer": "spiece.model",
}  # fmt: skip


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes with names")
@pytest.mark.parametrize("kind", ["a pipe", "a socket", "a device"])
@pytest.mark.parametrize("place", LINKS)
def test_what_is_no_regular_file_is_refused_without_being_read(kind, place, safe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # names of sockets are short
    target, folder = special_file(kind), tmp_path / "folder"
    folder.mkdir()
    if LINKS[place]:
        (folder / LINKS[place]).symlink_to(target)
    path = {"weights": target, "config.json": folder / "x.safetensors"}.get(place, folder)
    if place in ("config.json", "tokenizer"):
        safe.rename(folder / "x.safetensors")
    with pytest.raises(WeightsError, match=f"is not a regular file but {kind}; choose another file"):
        source = open_source(path)
        if place == "tokenizer":
            find_tokenizer(source)


def test_a_pickle_without_tensors_is_refused(tmp_path):
    torch.save([1, 2], tmp_path / "x.pth")
    torch.save({"epoch": 3}, tmp_path / "y.pth")
    for name in ("x.pth", "y.pth"):
        with pytest.raises(WeightsError, match="holds no named tensors"):
            open_source(tmp_path / name)


def test_unsupported_gguf_blocks_are_named(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "wan")
    raw = np.zeros((2, 66), dtype=np.uint8)
    writer.add_tensor("a", raw, raw_dtype=gguf.GGMLQuantizationType.IQ2_XXS)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(WeightsError, match=r"IQ2_XXS blocks \(a\); use Q8_0, Q6_K"):
        open_file(tmp_path / "x.gguf")


def test_folders(safe, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(WeightsError, match="holds no weights file"):
        open_source(folder)
    with pytest.raises(WeightsError, match="does not exist"):
        open_source(folder / "nothing")
    safe.rename(folder / "model.safetensors")
    torch.save({"z": torch.ones(1)}, folder / "pytorch_model.bin")
    assert set(open_source(folder).entries) == {"a", "b"}  # safetensors before pickles
    (folder / "other.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    with pytest.raises(WeightsError, match=r"holds 2 weights files \(model.safetensors, other.safetensors, ...\)"):
        open_source(folder)
    (folder / "x.index.json").write_text("{}")
    with pytest.raises(WeightsError, match="is no index of shards"):
        open_source(folder)


def test_a_config_among_several_files_is_nobodys(safe):
    (safe.parent / "config.json").write_text('{"num_heads": 4}')
    assert open_source(safe).config == {"num_heads": 4}
    other = safe.parent / "another.safetensors"
    other.write_bytes(safe.read_bytes())
    assert open_source(safe).config == open_source(other).config == {}
    own = safe.parent / "diffusion_pytorch_model.safetensors"
    own.write_bytes(safe.read_bytes())
    assert open_source(own).config == {"num_heads": 4}


def test_a_damaged_config_is_named(safe):
    (safe.parent / "config.json").write_text("{")
    with pytest.raises(WeightsError, match=r"config.json is damaged"):
        open_source(safe)
