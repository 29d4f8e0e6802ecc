"""Frames of a window on their way from the card: colours are matched there, a few frames at a time."""

import pytest
import torch

from benchmarks.rehearsal.fake_card import FakeCard
from benchmarks.rehearsal.networks import fake_vae
from pipeline.conditioning.conditioning import Conditioning
from pipeline.generate import _decode
from pipeline.generation.recovery import Coders
from pipeline.host import TorchHost
from pipeline.memory.placement import MemoryConfig, placed
from pipeline.models.image_encoder import ImageEncoder
from pipeline.postprocess.apply import PostprocessConfig, postprocess
from pipeline.postprocess.color import CHUNK_FRAMES

HEIGHT, WIDTH = 480, 832
FRAME_BYTES = 3 * HEIGHT * WIDTH * 4


@pytest.mark.parametrize("color_frames", [1, 51])
@pytest.mark.parametrize("num_frames", [17, 81])
def test_colours_are_matched_on_the_card_in_the_memory_of_a_few_frames(num_frames, color_frames):
    with FakeCard() as card:
        frames, reference = torch.empty(3, num_frames, HEIGHT, WIDTH), torch.empty(3, HEIGHT, WIDTH)
        with card.record() as figures:
            config = PostprocessConfig(color_frames=color_frames)
            matched = postprocess(frames, reference, None, 0, config, torch.device("cuda"))
        assert matched.device.type == "cpu" and matched.shape == frames.shape
    assert 0 < figures.work_bytes < 11 * CHUNK_FRAMES * FRAME_BYTES
    assert sum(figures.downloads.values()) == 2 * num_frames * FRAME_BYTES  # once in Lab, once as RGB
    assert not figures.syncs and not figures.wide


def test_frames_leave_the_card_chunk_by_chunk_and_the_image_encoder_stays_away_from_the_decoder():
    from transformers import CLIPVisionConfig, CLIPVisionModel

    with FakeCard() as card:
        clip = CLIPVisionModel(
            CLIPVisionConfig(hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4)
        )
        vae, host, prompt = fake_vae(torch.bfloat16, device="cpu"), TorchHost("cuda"), torch.zeros(1, 8)
        source = torch.zeros(1, HEIGHT, WIDTH, 3, dtype=torch.uint8)
        conditioning = Conditioning(source, (prompt,), prompt, vae, image_encoder=ImageEncoder(clip))
        with placed(_tiny(), MemoryConfig(), _size(), host) as placement, card.record() as figures:
            coders = Coders(conditioning, placement, host)
            assert coders.encode(_devices) == {"cuda"}
            assert coders.decode(_devices) == {"cuda", "cpu"}
            frames = coders.decode(_decode, torch.zeros(16, 3, HEIGHT // 8, WIDTH // 8), host)
        assert frames.shape == (3, 9, HEIGHT, WIDTH) and frames.device.type == "cpu"
    assert max(figures.downloads.values()) <= frames.numel() * 4


def _devices(conditioning):
    return {next(network.parameters()).device.type for network in conditioning.networks}


def _tiny():
    from benchmarks.rehearsal.networks import fake_transformer

    return fake_transformer(1, device="cpu")


def _size():
    from benchmarks.rehearsal.networks import SIZES

    return SIZES["smoke"]
