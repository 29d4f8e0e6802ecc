"""One real purchase of 41 frames, for about $0.33: what only fal itself can tell."""

import os
from pathlib import Path

import pytest
import torch
from multitalk_pack.pipeline.config import GenerationConfig
from multitalk_pack.pipeline.host import TorchHost
from multitalk_pack.pipeline.remote import media
from multitalk_pack.pipeline.remote.context import RemoteContext
from multitalk_pack.pipeline.remote.endpoints import AI_AVATAR
from multitalk_pack.pipeline.remote.request import RemoteRequest
from support.remote import run_on_host, voice

PAID = os.environ.get("MULTITALK_FAL_PAID_TESTS") == "1" and "FAL_KEY" in os.environ


@pytest.mark.paid
@pytest.mark.skipif(not PAID, reason="MULTITALK_FAL_PAID_TESTS=1 and FAL_KEY are wanted, and about $0.33")
def test_the_first_real_video(tmp_path: Path):
    files = {
        "image_url": media.encode_image(torch.rand(1, 480, 480, 3)),
        "audio_url": media.encode_sound(voice(3, 16000), 41 / 25),
    }
    config = GenerationConfig(num_frames=41)
    request = RemoteRequest(AI_AVATAR, "a person speaks to the camera", config, files, 41 / 25)
    video = run_on_host(request, RemoteContext.open(tmp_path / "private", tmp_path / "output"), TorchHost("cpu"))
    assert video.units is not None, "fal sends its billed units"
    assert video.billed_usd == pytest.approx(video.estimate.usd), "neither rounding nor acceleration changes the price"
    assert (video.properties.num_frames, video.properties.fps) == (41, 25), "the length is exact"
