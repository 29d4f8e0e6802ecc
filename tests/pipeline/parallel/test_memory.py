"""Memory: two ranks map the weights of one file, and neither has a copy of its own."""

from functools import partial

import pytest
import torch
from multitalk_pack.benchmarks.measure import PrivatePeak
from multitalk_pack.benchmarks.tiny_weights import WeightSizes, adapter_shapes, transformer_shapes
from multitalk_pack.pipeline.parallel.rank_agreement import RankAgreement
from multitalk_pack.pipeline.parallel.split import Layout
from multitalk_pack.pipeline.parallel.ulysses import UlyssesShares
from multitalk_pack.pipeline.weights.build import load_transformer
from safetensors.torch import save_file
from support import forked
from support.peak import linux_only
from support.tiny_models import velocity

pytestmark = pytest.mark.xdist_group("memory")

LARGE = WeightSizes(width=1024, layers=5, ffn=4096)
SHARE = 0.05  # of the file, that may become a rank's own


def write(folder, sizes):
    """A base and an adapter of float32 zeros."""
    folder.mkdir()
    paths = folder / "wan2.1_i2v.safetensors", folder / "multitalk.safetensors"
    for path, shapes in zip(paths, (transformer_shapes(sizes), adapter_shapes(sizes)), strict=True):
        save_file({key: torch.zeros(shape) for key, shape in shapes}, path)
    return paths


@linux_only
def test_two_ranks_have_hardly_any_weights_of_their_own(tmp_path):
    paths = write(tmp_path / "large", LARGE)
    small = write(tmp_path / "small", WeightSizes())
    velocity(load_transformer(*small, torch.float32))  # the libraries' own memory is there
    file_mb = sum(path.stat().st_size for path in paths) / 1e6
    assert file_mb > 400

    def work(rank):
        agreement = RankAgreement(Layout(1, 2), torch.device("cpu"))
        with PrivatePeak() as peak:
            model = load_transformer(*paths, torch.float32)
            model.set_shares(partial(UlyssesShares, agreement.pass_ranks))
            velocity(model)
        return peak.megabytes()

    assert max(forked.on_ranks(2, work)) < SHARE * file_mb
