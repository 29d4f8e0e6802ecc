"""Memory: weights are mapped from their file, whatever its size, and no header takes much, whatever is in it."""

import json
import struct
import zipfile

import pytest
import torch
from multitalk_pack.benchmarks.tiny_weights import WeightSizes, adapter_shapes, transformer_shapes
from safetensors.torch import save_file
from support.peak import linux_only, run_script

SIZES = WeightSizes(width=1024, layers=8, ffn=4096)

LOAD = """
import torch
from multitalk_pack.benchmarks.measure import PrivatePeak
from multitalk_pack.pipeline.weights.build import load_transformer
load_transformer(*sys.argv[1:3])  # the libraries' own memory is there
with PrivatePeak() as peak:
    model = load_transformer(*sys.argv[3:])
print(json.dumps(peak.megabytes()))
"""

OPEN = """
from multitalk_pack.benchmarks.measure import PrivatePeak
from multitalk_pack.pipeline.errors import WeightsError
from multitalk_pack.pipeline.weights.catalog import check_transformer
figures = {}
for path in sys.argv[1:]:
    with PrivatePeak() as peak:
        try:
            check_transformer(path)
        except WeightsError:
            figures[path.rpartition("/")[2]] = peak
print(json.dumps({name: peak.megabytes() for name, peak in figures.items()}))
"""


def write(folder, sizes):
    """A base and an adapter of float16 zeros."""
    folder.mkdir()
    paths = folder / "wan2.1_i2v.safetensors", folder / "multitalk.safetensors"
    for path, shapes in zip(paths, (transformer_shapes(sizes), adapter_shapes(sizes)), strict=True):
        save_file({key: torch.zeros(shape, dtype=torch.float16) for key, shape in shapes}, path)
    return paths


@linux_only
@pytest.mark.xdist_group("memory")
def test_loading_takes_a_seventh_of_the_file_at_most(tmp_path):
    small, large = write(tmp_path / "small", WeightSizes()), write(tmp_path / "large", SIZES)
    file_mb = sum(path.stat().st_size for path in large) / 1e6
    assert file_mb > 300
    assert run_script(LOAD, *small, *large) < file_mb / 7  # 0.5 GB of 3.5


def safetensors(header):
    return struct.pack("<Q", len(header)) + header


def gguf(value, num_fields=1):
    return b"GGUF" + struct.pack("<IQQQ", 3, 0, num_fields, 0) + value


def array(kind, length):
    return struct.pack("<IIQ", 9, kind, length)


def unique_keys(count):
    return b'{"a":{' + b",".join(b'"%x":1' % number for number in range(count)) + b"}}"


def one_number(*names):
    entry = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    patches = {"dtype": "F32", "shape": [256, 36, 1, 2, 2], "data_offsets": [0, 147456]}
    return json.dumps({"patch_embedding.weight": patches} | dict.fromkeys(names, entry)).encode()


HOSTILE = {  # each is followed by 5 GB of zeros
    "header of 4.8 GB": struct.pack("<Q", 48 * 10**8) + b"{",
    "empty lists": safetensors(b'{"a":[' + b"[]," * 9_000_000 + b"0]}"),
    "many keys": safetensors(unique_keys(1_000_000)),
    "one wide letter": safetensors('{"__metadata__":{"a":"😀'.encode() + b"a" * 90_000_000 + b'"}}'),
    "block of a huge number": safetensors(
        one_number("blocks.999999999.self_attn.q.weight", "blocks.999999999.cross_attn.k_img.weight")
    ),
    "array of bytes": gguf(array(0, 300_000_000)),
    "array of texts": gguf(array(8, 300_000_000)),
    "most values": gguf(array(8, 2_000_000)),
    "many fields": gguf(b"", num_fields=10**8),
    "a text of 3 GB": gguf(struct.pack("<IQ", 8, 3 * 10**9)),
    "a text of 90 MB": gguf(struct.pack("<IQ", 8, 90_000_000) + b"\xff" * 90_000_000),
    "pickle of sets": b"\x80\x02(" + b"\x8f" * 9_000_000 + b"l.",
    "pickle of a long text": b"\x80\x02X" + struct.pack("<I", 3 * 10**9),
}


@linux_only
def test_no_header_takes_a_gigabyte(tmp_path):
    paths = [tmp_path / name for name in (*HOSTILE, "zip of sets", "zip that inflates", "config")]
    for name, start in HOSTILE.items():
        with (tmp_path / name).open("wb") as file:
            file.write(start)
            file.truncate(5 * 10**9)  # a hole, which takes no room
    for name, kind in (("zip of sets", zipfile.ZIP_STORED), ("zip that inflates", zipfile.ZIP_DEFLATED)):
        with zipfile.ZipFile(tmp_path / name, "w", kind) as archive:
            archive.writestr("archive/data.pkl", b"\x80\x02(" + b"\x8f" * 16_000_000 + b"l.")
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "model.safetensors").write_bytes(safetensors(b"{}"))
    with (tmp_path / "config" / "config.json").open("wb") as file:
        file.truncate(5 * 10**9)
    peaks = run_script(OPEN, *paths)
    assert peaks.keys() == {path.name for path in paths}  # all are refused
    assert max(peaks.values()) < 1000, peaks
