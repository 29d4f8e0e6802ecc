"""Compiled blocks: what Inductor fuses of a published block."""

import pytest

from benchmarks.rehearsal import NUM_BLOCKS
from benchmarks.rehearsal.compiled import fused_bytes
from benchmarks.rehearsal.networks import SIZES


@pytest.mark.long
def test_compiled_blocks_pass_over_their_tokens_half_as_often_as_eager_ones():
    assert 0.5e12 < NUM_BLOCKS * fused_bytes(SIZES["480p"]) < 0.6e12  # eager: 0.98
