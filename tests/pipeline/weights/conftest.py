import pytest
import torch
from multitalk_pack.pipeline.weights.build import load_transformer
from safetensors.torch import save_file
from support.tiny_models import adapter_state, base_state


@pytest.fixture
def plain_transformer(tmp_path):
    """The tiny transformer in float32, its matrices plain."""
    save_file(base_state() | adapter_state(), tmp_path / "whole.safetensors")
    return load_transformer(tmp_path / "whole.safetensors", dtype=torch.float32)
