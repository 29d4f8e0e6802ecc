"""Files as a person chooses them, and a counter of the tensors that are read."""

from collections import Counter

import pytest
from multitalk_pack.pipeline.weights import source
from support.user_files import Files


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return Files(tmp_path_factory.mktemp("files"))


@pytest.fixture
def tensors_read(monkeypatch):
    """Counts the tensors that are taken out of weights files, by name."""
    counter = Counter()
    for kind in source.Source.__subclasses__():
        monkeypatch.setattr(kind, "get", count_and_call(kind.get, counter))
    return counter


@pytest.fixture
def no_tensor_is_read(tensors_read):
    yield
    assert tensors_read.total() == 0


def count_and_call(get, counter):
    def get_and_count(source, key):
        counter[key] += 1
        return get(source, key)

    return get_and_count
