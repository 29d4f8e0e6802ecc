"""The dtype of computation on each device."""

import pytest
import torch
from multitalk_pack.pipeline.weights import handles
from multitalk_pack.pipeline.weights.handles import Precision

CARD, CPU = torch.device("cuda"), torch.device("cpu")


@pytest.mark.parametrize(
    ("capability", "hip", "expected"),
    [
        ((7, 0), None, torch.float16),
        ((7, 5), None, torch.float16),
        ((8, 0), None, torch.bfloat16),
        ((12, 0), None, torch.bfloat16),
        ((7, 5), "6.4", torch.bfloat16),
    ],
)
def test_a_card_computes_in_what_its_kernels_take(monkeypatch, tmp_path, capability, hip, expected):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.version, "hip", hip)
    assert Precision.AUTO.on(CARD) is expected
    assert Precision.FP32.on(CARD) is torch.float32
    monkeypatch.setattr("multitalk_pack.pipeline.weights.catalog.check_text_encoder", lambda path: "umT5")
    texts = handles.text_encoder(tmp_path, CARD).load.keywords["dtype"]
    assert texts is (torch.bfloat16 if expected is torch.bfloat16 else torch.float32)


@pytest.mark.parametrize("device", [CPU, torch.device("mps"), torch.device("xpu")])
def test_other_devices_compute_in_float32_whatever_card_there_is_beside_them(monkeypatch, device):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert Precision.AUTO.on(device) is torch.float32
    assert Precision.BF16.on(device) is torch.bfloat16
