"""A forward on several ranks is the forward of one, for every number of ranks, voices and kind of weights."""

from functools import partial

import pytest
import torch
from multitalk_pack.benchmarks.measure import relative_error
from multitalk_pack.pipeline.models.transformer import audio_attention
from multitalk_pack.pipeline.multitalk_pipeline import MultiTalkPipeline
from multitalk_pack.pipeline.parallel.rank_agreement import RankAgreement
from multitalk_pack.pipeline.parallel.split import Layout
from multitalk_pack.pipeline.parallel.ulysses import UlyssesShares
from multitalk_pack.pipeline.shapes import LatentSize
from multitalk_pack.pipeline.weights.build import load_transformer
from multitalk_pack.pipeline.weights.lora import LoraStack
from safetensors.torch import save_file
from support import forked, transformer
from support.packagings import E4M3, gguf_file, scaled
from support.tiny_models import adapter_state, base_state, velocity

pytestmark = pytest.mark.xdist_group("ranks")

SIZE = LatentSize(3, 4, 10)  # 10 tokens of a frame: uneven shares of three and four ranks


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def shared(model, layout):
    """The agreement of this rank, whose shares the network is given."""
    agreement = RankAgreement(layout, torch.device("cpu"))
    if layout.tokens > 1:
        model.set_shares(partial(UlyssesShares, agreement.pass_ranks))
    return agreement


def assert_same_on(num_ranks, model, size=SIZE):
    """A forward of one voice, and one of two, has the numbers of one rank on so many."""

    def forwards(rank=None):
        if rank is not None:
            shared(model, Layout(1, num_ranks))
        passes = [transformer.pass_inputs(model, num_speakers, size) for num_speakers in (1, 2)]
        return [model(transformer.latents(size), 500.0, inputs).numpy() for inputs in passes]

    alone = forwards()
    for together in forked.on_ranks(num_ranks, forwards):
        for one, several in zip(alone, together, strict=True):
            assert relative_error(torch.from_numpy(several), torch.from_numpy(one)) <= 1e-6


@pytest.mark.parametrize(("num_ranks", "num_heads"), [(2, 2), (3, 4), (4, 4)])
def test_a_forward_is_that_of_one_rank(num_ranks, num_heads):
    assert_same_on(num_ranks, transformer.tiny(num_heads=num_heads))


@pytest.mark.parametrize("num_ranks", [2, 3, 4])
def test_a_forward_of_the_bundled_weights_is_that_of_one_rank(num_ranks):
    assert_same_on(num_ranks, MultiTalkPipeline.bundled().transformer, LatentSize(3, 16, 16))


@pytest.mark.parametrize("num_ranks", [3, 4])
def test_the_formula_of_speech_is_chosen_by_the_whole_window(num_ranks, monkeypatch):
    model = transformer.tiny(num_heads=4)
    formulas = []
    folded = audio_attention._folded_attention
    monkeypatch.setattr(audio_attention, "_folded_attention", lambda *args: formulas.append(1) or folded(*args))

    def count(rank=None):
        formulas.clear()
        if rank is not None:
            shared(model, Layout(1, num_ranks))
        model(transformer.latents(SIZE), 500.0, transformer.pass_inputs(model, 1, SIZE))
        return len(formulas)

    assert forked.on_ranks(num_ranks, count) == [count()] * num_ranks


WEIGHTS = {
    "fp8": scaled(E4M3, False, ".weight", ".scale_weight", True, (".scale_input",)),
    "Q4_K": gguf_file("Q4_K"),
    "fp8 and a LoRA": scaled(E4M3, False, ".weight", ".scale_weight", True, (".scale_input",)),
}


@pytest.mark.parametrize("kind", WEIGHTS)
def test_packed_weights_and_loras_are_left_as_they_are(kind, tmp_path):
    base, adapter, _ = WEIGHTS[kind](base_state(), adapter_state(), tmp_path)
    model = load_transformer(base, adapter, torch.float32)
    if kind.endswith("LoRA"):
        layer = "blocks.0.self_attn.q"
        rows, columns = base_state()[f"{layer}.weight"].shape
        down, up = torch.randn(4, columns) / columns, torch.randn(rows, 4)
        save_file({f"{layer}.lora_down.weight": down, f"{layer}.lora_up.weight": up}, tmp_path / "lora.safetensors")
        LoraStack(model).replace([(tmp_path / "lora.safetensors", 1.0)])

    def work(rank):
        shared(model, Layout(1, 2))
        return velocity(model).numpy()

    alone = velocity(model).numpy()
    for ours in forked.on_ranks(2, work):
        assert abs(alone - ours).max() <= 1e-6 * abs(alone).max()
