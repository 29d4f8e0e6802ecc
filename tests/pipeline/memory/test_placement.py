"""Placement of a run's networks for the memory there is, and its results, which do not depend on it."""

import dataclasses
import logging

import pytest
import torch
from diffusers import AutoencoderKLWan
from multitalk_pack.pipeline.generate import _kept_bytes
from multitalk_pack.pipeline.media.pixels import to_uint8
from multitalk_pack.pipeline.memory.block_streaming import BLOCKS_IN_FLIGHT, BlockStream
from multitalk_pack.pipeline.memory.placement import (
    DECODE_BYTES,
    Footprint,
    MemoryConfig,
    MemoryLimit,
    num_bytes,
    plan_placement,
)
from multitalk_pack.pipeline.models.transformer.model import MultiTalkTransformer
from multitalk_pack.pipeline.models.vae.video_vae import VideoVae
from multitalk_pack.pipeline.shapes import LatentSize
from support import run
from support.peak import LiveTensors

GB = 10**9
PACKAGINGS = {"bf16": 16, "fp8": 8, "Q4_K": 4.5}  # bits of a number
SIZES = {"480p": LatentSize.of_video(81, 480, 832), "720p": LatentSize.of_video(81, 720, 1280)}


@pytest.fixture(scope="module")
def published():
    """The published transformer's sizes in bfloat16."""
    with torch.device("meta"):
        return Footprint.of(MultiTalkTransformer().bfloat16())


def packaged(footprint, packaging):
    """The same network whose blocks' numbers have fewer bits."""
    return dataclasses.replace(footprint, block_bytes=round(footprint.block_bytes * PACKAGINGS[packaging] / 16))


def constant_bytes(size, width, num_layers):
    """Bytes of the keys and values of two prompts, a picture, a voice and silence, two bytes a number."""
    return 2 * 2 * (2 * 512 + 257 + 2 * 32 * size.t) * width * num_layers


def planned_bytes(footprint, size, blocks):
    """Bytes with so many resident blocks: weights, two blocks in flight, keys and values, 8 sets of tokens, 0.5 GB."""
    in_flight = min(2, footprint.num_blocks - blocks)
    tokens = size.t * (size.h // 2) * (size.w // 2)
    weights = footprint.outer_bytes + (blocks + in_flight) * footprint.block_bytes
    return weights + constant_bytes(size, 5120, 40) + 8 * tokens * footprint.width * 2 + GB // 2


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("packaging", PACKAGINGS)
@pytest.mark.parametrize("memory", MemoryLimit)
@pytest.mark.parametrize("card_gb", [6, 8, 12, 16, 24, 32, 48, 80])
def test_as_many_blocks_stay_as_fit(published, card_gb, memory, packaging, size):
    footprint = packaged(published, packaging)
    placement = plan_placement(footprint, MemoryConfig(memory), size, card_gb * GB, constant_bytes(size, 5120, 40))
    limits = {"auto": card_gb, "all": card_gb} | {f"{limit} GB": min(limit, card_gb) for limit in (8, 12, 16, 24)}
    budget = limits[memory.value] * GB
    fitting = [blocks for blocks in range(41) if planned_bytes(footprint, size, blocks) <= budget]
    num_blocks = 40 if memory is MemoryLimit.ALL else max(fitting, default=0)
    assert (placement.resident_blocks, placement.budget) == (num_blocks, budget)
    assert placement.estimate == planned_bytes(footprint, size, num_blocks)


@pytest.mark.parametrize("num_speakers", [1, 2])
def test_what_a_run_keeps_is_counted_for_each_voice_and_silence(num_speakers):
    model = run.model()
    audio = run.audio(model, 9, num_speakers)
    spec = run.spec(audio, run.conditioning(model, num_speakers), run.config())
    size, width, layers = LatentSize(3, run.HEIGHT // 8, run.WIDTH // 8), 64, 2
    another_voice = 2 * 2 * 32 * size.t * width * layers
    assert _kept_bytes(model, audio, spec) == constant_bytes(size, width, layers) + (num_speakers - 1) * another_voice


def test_blocks_asked_for_are_blocks_that_stay(published):
    for resident, num_blocks in ((0, 0), (7, 7), (99, 40)):
        placement = plan_placement(published, MemoryConfig(MemoryLimit.AUTO, resident), SIZES["480p"], 8 * GB)
        assert placement.resident_blocks == num_blocks


@pytest.mark.parametrize("resident_blocks", [0, 1, 3, 4])
def test_two_blocks_in_flight_give_the_bits_of_the_resident_run(resident_blocks):
    model = run.model(num_layers=5)
    expected = frames_of(model)
    originals, counts = [tensors(block) for block in model.blocks], []

    def count(*_):
        counts.append(sum(tensors(block) != own for block, own in zip(model.blocks, originals, strict=True)))

    hooks = [block.attn1.register_forward_hook(count) for block in model.blocks]
    streamed = frames_of(model, memory=MemoryConfig(MemoryLimit.AUTO, resident_blocks))
    for hook in hooks:
        hook.remove()
    assert torch.equal(streamed, expected)
    assert 1 <= max(counts) <= BLOCKS_IN_FLIGHT and [tensors(block) for block in model.blocks] == originals


def test_the_exchange_of_weights_is_not_compiled():
    blocks = [torch.nn.Linear(4, 4) for _ in range(11)]
    tokens = torch.randn(2, 4)
    expected = torch.nn.Sequential(*blocks, *blocks)(tokens)
    stream, graphs = BlockStream(blocks, torch.device("cpu")), []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    for block in blocks:
        block.compile(backend=backend)
    for block in blocks * 2:
        tokens = block(tokens)
    stream.close()
    assert torch.equal(tokens, expected)
    assert len(graphs) < len(blocks)  # traced, each block's own hooks made another graph, until dynamo gave up


@pytest.mark.skipif(torch.accelerator.is_available(), reason="memory can be pinned")
def test_where_nothing_can_be_pinned_blocks_are_copied_all_the_same(caplog):
    stream = BlockStream([torch.nn.Linear(4, 4)], torch.device("cpu"))
    sources = [torch.ones(3), torch.zeros(2)]
    for _ in range(2):
        assert all(a is b for a, b in zip(stream._pinned(sources), sources, strict=True))
    assert caplog.text.count("blocks are copied more slowly") == 1


def tensors(block):
    return [parameter.data_ptr() for parameter in block.parameters()]


def frames_of(model, conditioning=None, host=None, **options):
    audio, conditioning = run.audio(model, 9), conditioning or run.conditioning(model)
    return torch.cat(list(run.generate(model, audio, conditioning, host=host, **options)), 1)


@torch.inference_mode()
def test_the_decoders_memory_is_what_is_reckoned_with():
    with torch.random.fork_rng():
        vae = VideoVae(AutoencoderKLWan().eval())
    with LiveTensors() as live:
        for _ in vae.decode(torch.zeros(16, 4, 4, 4)):
            pass
    assert live.peak == pytest.approx(DECODE_BYTES * 32 * 32, rel=0.05)


class SmallHost(run.RecordingHost):
    """A device on which so many bytes are free."""

    def __init__(self, free):
        super().__init__()
        self.free = free

    def free_memory(self):
        return self.free


@pytest.fixture
def wide():
    """A picture wider than a tile, of a model."""
    model = run.model()
    source = to_uint8(run.random((1, 32, 320, 3), 6))
    return model, dataclasses.replace(run.conditioning(model), source=source)


def test_the_vae_works_on_tiles_where_whole_frames_do_not_fit(wide, caplog):
    model, conditioning = wide
    vae_bytes = DECODE_BYTES * 32 * 320 + sum(map(num_bytes, conditioning.networks))
    with caplog.at_level(logging.WARNING):
        whole = frames_of(model, conditioning, SmallHost(vae_bytes), memory=MemoryConfig(resident_blocks=0))
        assert "tiles" not in caplog.text
        tiled = frames_of(model, conditioning, SmallHost(vae_bytes - 1), memory=MemoryConfig(resident_blocks=0))
        assert "too little memory for the VAE, which takes about 0.2 GB" in caplog.text
    assert 0 < (tiled - whole).abs().mean() < 0.05 * whole.std()


def test_a_vae_that_runs_out_of_memory_goes_on_in_tiles(wide, monkeypatch):
    model, conditioning = wide
    planned = frames_of(model, conditioning, SmallHost(1), memory=MemoryConfig(resident_blocks=0))
    for name in ("encode_padded", "decode"):
        work = getattr(VideoVae, name)

        def fail_on_whole_frames(self, *args, work=work):
            if self.tiling is None:
                raise torch.OutOfMemoryError("no room")
            return work(self, *args)

        monkeypatch.setattr(VideoVae, name, fail_on_whole_frames)
    assert torch.equal(frames_of(model, conditioning), planned)
