"""A video to dub, as IMAGE: its frames are taken by their time, and held in bytes."""

from types import SimpleNamespace

import pytest
import torch
from support import pack
from support.peak import LiveTensors

VAE = SimpleNamespace(encode=None, decode=None, first_stage_model=None)  # it encodes nothing here
TEXT = [[torch.ones(1, 3, 8), {}]]


@pytest.fixture(scope="module")
def condition(tmp_path_factory):
    """The outputs of MultiTalk Condition for a video of 64x64 pixels."""
    folder = tmp_path_factory.mktemp("pack")
    node = pack.node_classes(pack.load(folder, folder))["MultiTalkCondition"]

    def condition(frames, **inputs):
        return node.execute(
            image=frames, vae=VAE, positive=TEXT, negative=TEXT, prompt="", negative_prompt="", resolution="custom",
            image_encoder=SimpleNamespace(penultimate_hidden_states=torch.ones(1, 257, 8)), width=64, height=64,
            dub_video=True, **inputs,
        ).args  # fmt: skip

    return condition


def numbered(num_frames):
    """Frames of 0..1, each as bright as its number."""
    return (torch.arange(num_frames) / 255).view(-1, 1, 1, 1).expand(-1, 64, 64, 3).contiguous()


@pytest.mark.parametrize("fps", [12, 23.976, 24, 25, 29.97, 30, 50, 60])
def test_each_frame_of_the_video_is_the_sources_of_its_time(condition, fps):
    num_frames = 240
    conditioning, first = condition(numbered(num_frames), source_fps=fps)
    shown_s = conditioning.source[:, 0, 0, 0].double() / fps
    assert abs(len(shown_s) / 25 - num_frames / fps) <= 0.5 / 25
    middles_s = (torch.arange(len(shown_s), dtype=torch.float64) + 0.5) / 25
    assert ((shown_s <= middles_s + 1e-6) & (middles_s < shown_s + 1 / fps + 1e-6)).all()
    assert first.shape == (1, 64, 64, 3)


def test_at_the_models_own_rate_every_frame_is_shown_once(condition):
    conditioning, _ = condition(numbered(100))
    assert conditioning.source[:, 0, 0, 0].tolist() == list(range(100))


@pytest.mark.parametrize("fps", [0, -1, 1000, float("nan"), float("inf")])
def test_a_rate_that_no_file_has_is_refused(condition, fps):
    with pytest.raises(ValueError, match=r"fps must be in 1\.\.120"):
        condition(numbered(2), source_fps=fps)


def test_a_long_source_takes_a_quarter_of_its_floats(condition):
    frames = numbered(250)
    with LiveTensors() as tensors:
        outputs = condition(frames, source_fps=25.0)
    assert tensors.peak < 0.3 * frames.nbytes and len(outputs[0].source) == 250
