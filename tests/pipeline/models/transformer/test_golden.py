"""The whole transformer against the published program's numbers, with its intermediate values."""

from collections.abc import Callable
from functools import cache

import pytest
import torch
from multitalk_pack.pipeline.models.transformer.inputs import PassInputs
from multitalk_pack.pipeline.models.transformer.model import MultiTalkTransformer
from multitalk_pack.pipeline.shapes import LatentSize
from support.golden import Golden
from support.transformer import from_golden
from torch import Tensor

CASES = [("dit_single", "a"), ("dit_single", "b"), ("dit_multi", "a"), ("dit_multi", "b"), ("dit_multi", "null_audio")]


@cache
def load(name: str) -> tuple[Golden, MultiTalkTransformer]:
    golden = Golden(name)
    return golden, from_golden(golden)


def prepare(golden: Golden, transformer: MultiTalkTransformer, case: str) -> PassInputs:
    def tensor(name: str) -> Tensor:
        return golden[f"in.{case}.{name}"]

    size = LatentSize(*golden.cases[case]["latent_thw"])
    window = transformer.prepare_window(size, tensor("y"), tensor("clip_fea")[0], tensor("ref_target_masks"))
    return transformer.prepare_pass(window, tensor("context"), tensor("audio"))


def run(golden: Golden, transformer: MultiTalkTransformer, inputs: PassInputs, case: str) -> Tensor:
    return transformer(golden[f"in.{case}.x"], golden[f"in.{case}.t"], inputs)


@pytest.mark.parametrize(("name", "case"), CASES)
def test_the_velocity_is_the_published_one(name, case):
    golden, transformer = load(name)
    golden.assert_close(run(golden, transformer, prepare(golden, transformer, case), case), f"out.{case}.velocity")


@pytest.mark.parametrize(("name", "case"), CASES)
def test_a_second_call_reads_its_constants_and_is_the_same(name, case):
    golden, transformer = load(name)
    inputs = prepare(golden, transformer, case)
    first = run(golden, transformer, inputs, case)
    assert torch.equal(run(golden, transformer, inputs, case), first)


@pytest.mark.parametrize(("name", "case"), CASES)
def test_the_inputs_of_the_blocks_are_the_published_ones(name, case):
    golden, transformer = load(name)
    inputs = prepare(golden, transformer, case)
    tokens, time = transformer.embed(golden[f"in.{case}.x"], golden[f"in.{case}.t"], inputs)
    context = transformer.block_context(inputs)
    values = {
        "patch_tokens": tokens[None],
        "time_embedding": time.embedding,
        "time_projection": time.projection.flatten(1),
        "text_embedding": with_padding(*context.text.value)[None],
        "img_emb_first_32_tokens": context.image.value[None, :32],
        "audio_tokens": context.audio.value.transpose(0, 1).flatten(1, 2)[None],
        "token_ref_target_masks": context.token_masks,
    }
    for key, value in values.items():
        if f"mid.{case}.{key}" in golden and value is not None:
            golden.assert_close(value, f"mid.{case}.{key}")


def with_padding(tokens, num_padding):
    """The prompt's tokens with every token of the padding."""
    return torch.cat((tokens[:-1], tokens[-1:].expand(num_padding, -1)))


@pytest.mark.parametrize(("name", "case"), CASES)
def test_the_outputs_of_the_blocks_are_the_published_ones(name, case):
    golden, transformer = load(name)
    outputs = {}

    def keep(key: str) -> Callable[..., None]:
        return lambda module, args, output: outputs.update({key: output})

    hooks = []
    for i, block in enumerate(transformer.blocks):
        parts = {"self_attn": block.attn1, "cross_attn": block.attn2, "audio_cross_attn": block.audio_cross_attn}
        for key, module in (parts | {"block": block}).items():
            hooks.append(module.register_forward_hook(keep(f"{key}{i}")))
    run(golden, transformer, prepare(golden, transformer, case), case)
    for hook in hooks:
        hook.remove()
    for i in range(len(transformer.blocks)):
        outputs[f"self_attn{i}"], outputs[f"ref_attn_map{i}"] = outputs[f"self_attn{i}"]
    keys = [key for key, value in outputs.items() if f"mid.{case}.{key}" in golden and value is not None]
    for key in keys:
        value = outputs[key]
        golden.assert_close(value if key.startswith("ref_attn_map") else value[None], f"mid.{case}.{key}")
    assert f"block{len(transformer.blocks) - 1}" in keys


def test_norms_have_the_published_epsilons():
    golden, transformer = load("dit_single")
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
        name_out = f"out.small_norms.{name}"
        golden.assert_close(norm(golden[f"in.small_norms.dim{golden[name_out].shape[-1]}"]), name_out)
