"""A whole run on a card, from encoded inputs to frames: its waits, its streams, its copies."""

import pytest
import torch

from benchmarks.rehearsal.fake_card import GB, FakeCard
from benchmarks.rehearsal.networks import fake_transformer, fake_vae
from pipeline.acceleration.attention_kernels import find_kernel
from pipeline.acceleration.presets import AccelerationOptions, Compile
from pipeline.audio.embeds import AudioEmbeds
from pipeline.conditioning.conditioning import Conditioning
from pipeline.config import GenerationConfig, Recipe
from pipeline.generate import generate
from pipeline.generation.run_spec import make_run_spec
from pipeline.host import TorchHost
from pipeline.memory.placement import MemoryConfig

SIDE, STEPS = 32, 2


@pytest.mark.parametrize(("packaging", "resident_blocks"), [("bf16", None), ("fp8", 0)])
def test_a_run_of_two_windows_waits_for_the_card_twice_while_each_samples(packaging, resident_blocks):
    find_kernel.cache_clear()
    options = AccelerationOptions(compile=Compile.OFF)
    choices = GenerationConfig(steps=STEPS, window_frames=9, motion_frames=5, num_frames=13)
    with FakeCard(memory=24 * GB) as card:
        transformer = fake_transformer(2, packaging, device="cpu")
        config, prompt = transformer.config, torch.zeros(5, transformer.config.text_dim)
        conditioning = Conditioning(
            source=torch.zeros(1, SIDE, SIDE, 3, dtype=torch.uint8),
            prompt_embeds=(prompt,),
            negative_embeds=prompt,
            vae=fake_vae(torch.bfloat16, device="cpu"),
            image_embeds=torch.zeros(257, config.image_dim),
        )
        audio = AudioEmbeds(torch.zeros(1, 23, *config.audio_features), 13)
        spec = make_run_spec(choices, Recipe.MULTITALK, (SIDE, SIDE), 13, num_features=23, acceleration=options)
        assert len(spec.windows) == 2
        memory = MemoryConfig(resident_blocks=resident_blocks)
        with card.record() as figures:
            windows = list(generate(transformer, audio, conditioning, spec, TorchHost("cuda"), memory=memory))
        assert [frames.device.type for frames in windows] == ["cpu"] * 2
        assert sum(frames.shape[1] for frames in windows) == 13
    find_kernel.cache_clear()
    waits = {place: count for (_, place), count in figures.syncs.items()}
    sampling = sum(count for place, count in waits.items() if place.startswith("generation/guards"))
    probes_and_vae = sum(
        count for place, count in waits.items() if place.startswith(("acceleration/attention", "models/vae"))
    )
    assert sampling == 2 * len(spec.windows) and sampling + probes_and_vae == sum(waits.values()), waits
    assert not figures.wide
