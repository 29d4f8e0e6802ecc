"""Messages between a run and its ranks come out as they went in."""

from pathlib import Path

import pytest
import torch
from multitalk_pack.pipeline.acceleration.caches import CacheKind
from multitalk_pack.pipeline.acceleration.presets import AccelerationOptions
from multitalk_pack.pipeline.config import GenerationConfig, Recipe, Resolution
from multitalk_pack.pipeline.generation.run_spec import RunSpec, make_run_spec
from multitalk_pack.pipeline.memory.placement import MemoryConfig, MemoryLimit
from multitalk_pack.pipeline.parallel.messages import Message, from_json
from multitalk_pack.pipeline.parallel.split import Layout
from multitalk_pack.pipeline.weights.handles import TransformerFiles


def crossed(**fields):
    return Message.from_bytes(Message("run", fields).to_bytes()).fields


@pytest.mark.parametrize(
    "value",
    [
        make_run_spec(GenerationConfig(size=(32, 48), resolution=Resolution.P720), Recipe.MULTITALK, (32, 48), 30),
        make_run_spec(
            GenerationConfig(), Recipe.INFINITETALK, None, None,
            acceleration=AccelerationOptions(cache=CacheKind.EASY, threshold=0.1),
        ),
        TransformerFiles(Path("a.safetensors"), None, ((Path("lora"), 0.5),), Recipe.BUNDLED, torch.bfloat16),
        MemoryConfig(MemoryLimit.GB12, 3),
        Layout(2, 2),
    ],
    ids=["spec", "acceleration", "files", "memory", "layout"],
)  # fmt: skip
def test_choices_cross(value):
    assert from_json(type(value), crossed(value=value)["value"]) == value


def test_a_spec_that_crossed_plans_the_same_windows():
    spec = make_run_spec(GenerationConfig(), Recipe.MULTITALK, (32, 48), 200)
    other = from_json(RunSpec, crossed(spec=spec)["spec"])
    assert [(window.start, window.num_frames) for window in other.windows] == [
        (window.start, window.num_frames) for window in spec.windows
    ]


def test_tensors_cross_also_where_they_share_memory():
    whole = torch.randn(4, 6)
    message = Message("window", {"window": 1}, {"whole": whole, "part": whole[:2], "turned": whole.T})
    other = Message.from_bytes(message.to_bytes())
    assert (other.kind, other.fields) == ("window", {"window": 1})
    for name, tensor in message.tensors.items():
        assert torch.equal(other.tensors[name], tensor)
