"""Weights are mapped from their file: loading takes little memory of its own, whatever the file's size."""

import torch
from multitalk_pack.benchmarks.tiny_weights import TinySizes, adapter_shapes, transformer_shapes
from safetensors.torch import save_file
from support.peak import linux_only, run_script

SIZES = TinySizes(width=1024, layers=8, ffn=4096)

LOAD = """
import torch
from multitalk_pack.benchmarks.measure import PrivatePeak
from multitalk_pack.pipeline.weights.build import load_transformer
load_transformer(*sys.argv[1:3])  # the libraries' own memory is there
with PrivatePeak() as peak:
    model = load_transformer(*sys.argv[3:])
print(json.dumps(peak.megabytes()))
"""


def write(folder, sizes):
    """A base and an adapter of float16 zeros."""
    folder.mkdir()
    paths = folder / "wan2.1_i2v.safetensors", folder / "multitalk.safetensors"
    for path, shapes in zip(paths, (transformer_shapes(sizes), adapter_shapes(sizes)), strict=True):
        save_file({key: torch.zeros(shape, dtype=torch.float16) for key, shape in shapes}, path)
    return paths


@linux_only
def test_loading_takes_a_seventh_of_the_file_at_most(tmp_path):
    small, large = write(tmp_path / "small", TinySizes()), write(tmp_path / "large", SIZES)
    file_mb = sum(path.stat().st_size for path in large) / 1e6
    assert file_mb > 300
    assert run_script(LOAD, *small, *large) < file_mb / 7  # 0.5 GB of 3.5
