"""A run whose numbers go bad is mended once where it can be, and stopped with the likely cause where it cannot."""

import dataclasses

import pytest
import torch
from multitalk_pack.pipeline.acceleration.attention_kernels import AttentionKernel
from multitalk_pack.pipeline.acceleration.presets import AccelerationOptions
from multitalk_pack.pipeline.errors import ConfigError, NumericalError
from support import run
from torch.nn.functional import scaled_dot_product_attention

MATH = AccelerationOptions(attention=AttentionKernel.MATH)


@pytest.fixture
def model():
    return run.model()


def frames_of(model, num_frames=13, conditioning=None, options=None, steps=2):
    """A video whose colours are left alone: near black, the match multiplies the last bit's rounding thirteenfold."""
    conditioning = conditioning or run.conditioning(model)
    audio = run.audio(model, num_frames)
    config = run.config(steps=steps, color_strength=0.0)
    return torch.cat(list(run.generate(model, audio, conditioning, config, acceleration=options)), 1)


class Faulty:
    """An attention kernel that gives NaN from its n-th call on."""

    def __init__(self, first: int):
        self.calls, self.first = 0, first

    def __call__(self, query, key, value):
        self.calls += 1
        out = scaled_dot_product_attention(query, key, value)
        return out * float("nan") if self.calls > self.first else out


def break_kernel(monkeypatch, model, first):
    """`AUTO` is a faulty kernel, math is what it is."""
    from multitalk_pack.pipeline.acceleration import presets

    kernel, find = Faulty(first), presets.find_kernel
    monkeypatch.setattr(
        presets, "find_kernel", lambda kind, *rest: find(kind, *rest) if kind is AttentionKernel.MATH else kernel
    )
    return kernel


@pytest.mark.parametrize("first_bad_call", [0, 13, 40])
def test_a_faulty_kernel_is_replaced_once_and_the_video_is_what_math_gives(model, monkeypatch, caplog, first_bad_call):
    expected = frames_of(model, options=MATH)
    kernel = break_kernel(monkeypatch, model, first_bad_call)
    assert torch.allclose(frames_of(model), expected, atol=1e-4)
    assert kernel.calls > first_bad_call
    warnings = [record for record in caplog.records if "made again with the math attention kernel" in record.message]
    assert len(warnings) == 1, "the later windows run with math at once"


def test_what_math_cannot_mend_stops_after_two_tries_with_the_cause(model, monkeypatch):
    conditioning = run.conditioning(model)
    conditioning.negative_embeds.fill_(1e30)  # finite, but not when squared
    calls, forward = [], model.forward
    monkeypatch.setattr(model, "forward", lambda *args: calls.append(args) or forward(*args))
    with pytest.raises(NumericalError, match=r"not finite after the first step.*bfloat16.*math"):
        frames_of(model, conditioning=conditioning)
    assert len(calls) == 6, "three passes of the first step, twice"


def test_math_itself_is_not_tried_again(model, monkeypatch):
    conditioning = run.conditioning(model)
    conditioning.negative_embeds.fill_(1e30)  # finite, but not when squared
    calls, forward = [], model.forward
    monkeypatch.setattr(model, "forward", lambda *args: calls.append(args) or forward(*args))
    with pytest.raises(NumericalError):
        frames_of(model, conditioning=conditioning, options=MATH)
    assert len(calls) == 3


def test_the_model_is_left_with_its_own_kernel(model, monkeypatch):
    before = model.blocks[0].attn1.attend
    break_kernel(monkeypatch, model, 0)
    frames_of(model)
    assert model.blocks[0].attn1.attend is before


class BlackVae:
    """A coder that decodes to black, as one does that overflowed and was clamped."""

    def __init__(self, coder):
        self.coder = coder

    def encode(self, frames):
        return self.coder.encode(frames)

    def encode_padded(self, frames, num_frames):
        return self.coder.encode_padded(frames, num_frames)

    def decode(self, latents):
        for chunk in self.coder.decode(latents):
            yield torch.full_like(chunk, -1.0)


@pytest.mark.parametrize("part", ["prompt_embeds", "negative_embeds", "image_embeds"])
def test_conditions_that_are_no_numbers_are_refused_before_anything_runs(model, part):
    bad = torch.full((3, 8), float("nan"))
    with pytest.raises(ConfigError, match="tokens hold NaN or infinity"):
        dataclasses.replace(run.conditioning(model), **{part: (bad,) if part == "prompt_embeds" else bad})


def test_black_frames_stop_the_run_after_the_first_window(model):
    conditioning = run.conditioning(model)
    conditioning = dataclasses.replace(conditioning, vae=BlackVae(conditioning.vae))
    with pytest.raises(NumericalError, match=r"9 of 9 frames of window 1 are black.*VAE"):
        frames_of(model, 30, conditioning=conditioning)


def test_a_black_picture_may_give_black_frames(model):
    conditioning = run.conditioning(model)
    black = torch.zeros_like(conditioning.source)
    conditioning = dataclasses.replace(conditioning, vae=BlackVae(conditioning.vae), source=black)
    assert frames_of(model, 9, conditioning=conditioning).max() == -1
