"""The whole transformer against the published program's numbers, with its intermediate values."""

from functools import cache

import pytest
import torch
from multitalk_pack.pipeline.models.transformer.model import MultiTalkTransformer
from multitalk_pack.pipeline.models.transformer.prepared import PassInputs
from multitalk_pack.pipeline.shapes import LatentSize
from support.golden import Golden
from support.transformer import from_golden
from torch import Tensor

CASES = [("dit_single", "a"), ("dit_single", "b"), ("dit_multi", "a"), ("dit_multi", "b"), ("dit_multi", "null_audio")]


@cache
def opened(name: str) -> tuple[Golden, MultiTalkTransformer]:
    golden = Golden(name)
    return golden, from_golden(golden)


def prepare(golden: Golden, transformer: MultiTalkTransformer, case: str) -> PassInputs:
    def given(name: str) -> Tensor:
        return golden[f"in.{case}.{name}"]

    size = LatentSize(*golden.cases[case]["latent_thw"])
    window = transformer.prepare_window(size, given("y"), given("clip_fea")[0], given("ref_target_masks"))
    return transformer.prepare_pass(window, given("context"), given("audio"))


def run(golden: Golden, transformer: MultiTalkTransformer, heard: PassInputs, case: str) -> Tensor:
    return transformer(golden[f"in.{case}.x"], golden[f"in.{case}.t"], heard)


@pytest.mark.parametrize(("name", "case"), CASES)
def test_the_velocity_is_the_published_one(name, case):
    golden, transformer = opened(name)
    golden.assert_close(run(golden, transformer, prepare(golden, transformer, case), case), f"out.{case}.velocity")


@pytest.mark.parametrize(("name", "case"), CASES)
def test_a_second_call_finds_its_constants_and_gives_the_same(name, case):
    golden, transformer = opened(name)
    heard = prepare(golden, transformer, case)
    first = run(golden, transformer, heard, case)
    assert torch.equal(run(golden, transformer, heard, case), first)


@pytest.mark.parametrize(("name", "case"), CASES)
def test_what_enters_the_blocks(name, case):
    golden, transformer = opened(name)
    heard = prepare(golden, transformer, case)
    tokens, time = transformer.embed(golden[f"in.{case}.x"], golden[f"in.{case}.t"], heard)
    around = transformer.block_context(heard)
    got = {
        "patch_tokens": tokens[None],
        "time_embedding": time.embedding,
        "time_projection": time.projection.flatten(1),
        "text_embedding": padded(*around.text.value)[None],
        "img_emb_first_32_tokens": around.image.value[None, :32],
        "audio_tokens": around.voices.value.transpose(0, 1).flatten(1, 2)[None],
        "token_ref_target_masks": around.token_masks,
    }
    for key, value in got.items():
        if f"mid.{case}.{key}" in golden and value is not None:
            golden.assert_close(value, f"mid.{case}.{key}")


def padded(tokens, num_padding):
    """The prompt's tokens with every token of the padding."""
    return torch.cat((tokens[:-1], tokens[-1:].expand(num_padding, -1)))


@pytest.mark.parametrize(("name", "case"), CASES)
def test_what_the_blocks_make_of_it(name, case):
    golden, transformer = opened(name)
    got = {}
    hooks = []
    for i, block in enumerate(transformer.blocks):
        parts = {"cross_attn": block.attn2, "audio_cross_attn": block.audio_cross_attn, "block": block}
        for key, module in parts.items():
            hooks.append(module.register_forward_hook(lambda _, __, out, key=f"{key}{i}": got.update({key: out[None]})))
        hooks.append(
            block.attn1.register_forward_hook(
                lambda _, __, out, i=i: got.update({f"self_attn{i}": out[0][None], f"ref_attn_map{i}": out[1]})
            )
        )
    run(golden, transformer, prepare(golden, transformer, case), case)
    for hook in hooks:
        hook.remove()
    compared = [key for key, value in got.items() if f"mid.{case}.{key}" in golden and value is not None]
    for key in compared:
        golden.assert_close(got[key], f"mid.{case}.{key}")
    assert f"block{len(transformer.blocks) - 1}" in compared


def test_norms_have_the_published_epsilons():
    golden, transformer = opened("dit_single")
    block, image = transformer.blocks[0], transformer.condition_embedder.image_embedder
    zero = torch.zeros(1, golden.config["dim"])
    norms = {
        "blocks.0.norm1": lambda x: block.norm1(x, zero, zero),
        "blocks.0.norm3": block.norm2,
        "blocks.0.norm_x": block.norm_x,
        "blocks.0.norm2": lambda x: block.norm3(x, zero, zero),
        "blocks.0.self_attn.norm_q": block.attn1.norm_q,
        "blocks.0.cross_attn.norm_k_img": block.attn2.norm_added_k,
        "head.norm": lambda x: transformer.norm_out(x, zero, zero),
        "img_emb.proj.0": image.norm1,
        "img_emb.proj.4": image.norm2,
        "audio_proj.norm": transformer.audio_proj.norm,
    }
    for name, norm in norms.items():
        want = f"out.small_norms.{name}"
        golden.assert_close(norm(golden[f"in.small_norms.dim{golden[want].shape[-1]}"]), want)
