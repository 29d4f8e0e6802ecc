"""Torch's attention: its own call where its kernels hold no scores, pieces of the queries where they would."""

import pytest
import torch
from multitalk_pack.pipeline.models.transformer import scaled_dot_product
from torch.nn.functional import scaled_dot_product_attention


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_devices_with_fused_kernels_have_torchs_own_attention(kind):
    assert scaled_dot_product.torch_attention(torch.device(kind)) is scaled_dot_product_attention


def test_elsewhere_no_more_scores_are_held_than_planned_and_the_result_is_the_same(monkeypatch):
    heads, n, num_keys, k = 3, 50, 41, 8
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, heads, count, k, generator=generator) for count in (n, num_keys, num_keys))
    monkeypatch.setattr(scaled_dot_product, "MAX_SCORES", 7 * heads * num_keys)
    sizes = []

    def attend(query, key, value):
        sizes.append(query.shape[1] * query.shape[2] * key.shape[2])
        return scaled_dot_product_attention(query, key, value)

    monkeypatch.setattr(scaled_dot_product, "scaled_dot_product_attention", attend)
    output = scaled_dot_product.torch_attention(torch.device("mps"))(query, key, value)
    torch.testing.assert_close(output, scaled_dot_product_attention(query, key, value))
    assert max(sizes) == 7 * heads * num_keys and sum(sizes) == heads * n * num_keys
