"""Rehearsals on a fake card: GPU code runs on tensors without numbers, and all that it asks of a card is counted."""

import pytest
import torch

from benchmarks.rehearsal.fake_card import reason_against


@pytest.fixture(autouse=True)
def only_where_a_card_can_be_faked():
    reason = reason_against()
    if reason is not None:
        pytest.skip(reason)


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield
