"""Transformer tests ask for no gradients unless they say so."""

import pytest
import torch


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield
