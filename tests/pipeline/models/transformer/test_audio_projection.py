"""From features of video frames to audio tokens of latent frames."""

import pytest
import torch
from multitalk_pack.pipeline.models.transformer.audio_projection import AudioProjection, group_windows
from support.golden import Golden


@pytest.fixture(scope="module")
def golden():
    return Golden("audio_proj")


@pytest.mark.parametrize("case", ["two_people", "one_person", "null_audio"])
def test_tokens_are_the_published_ones(golden, case):
    config = golden.config
    projection = AudioProjection(
        config["audio_window"], config["blocks"] * config["channels"], config["intermediate_dim"],
        config["context_tokens"], config["output_dim"],
    )  # fmt: skip
    projection.load_state_dict(golden.state())
    windows = golden[f"in.{case}.windows"]
    first, others = group_windows(windows)
    golden.assert_close(first, f"mid.{case}.first")
    golden.assert_close(others, f"mid.{case}.latter")
    golden.assert_close(projection(windows), f"out.{case}.tokens")


def test_a_latent_frame_takes_eight_features_in_a_row():
    num_frames = 13
    features = torch.arange(num_frames)[:, None] + torch.arange(-2, 3)  # the window of frame f is f-2..f+2
    first, others = group_windows(features[None])
    assert first[0, 0].tolist() == [-2, -1, 0, 1, 2]
    for k, slots in enumerate(others[0].tolist(), start=1):
        assert slots == list(range(4 * k - 5, 4 * k + 3))
