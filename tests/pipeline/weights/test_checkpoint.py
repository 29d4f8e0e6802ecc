"""Damaged, foreign and dangerous files."""

import contextlib
import json
import os
import pickle
import struct

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from multitalk_pack.pipeline.errors import WeightsError
from multitalk_pack.pipeline.weights.checkpoint import open_file, open_source
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


def test_what_is_in_a_file(safe, packed):
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


DAMAGED = {
    "empty": (b"", "is empty"),
    "LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", r"Git-LFS pointer \(56 bytes\)"),
    "web page": (b"<!DOCTYPE html><html>", "is a web page"),
    "web page, other spelling": (b"\n <HTML>", "is a web page"),
    "text": (b"hello, I am no weights file at all", "no weights file"),
    "header too long": (struct.pack("<Q", 10**6) + b'{"a"', "ends inside its header"),
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
