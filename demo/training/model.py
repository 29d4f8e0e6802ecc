"""Networks of the last two phases: the transformer with its audio adapter, and the encoder of its prompts."""

from __future__ import annotations

import math

import sentencepiece
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import UMT5Config, UMT5EncoderModel

from pipeline.models.transformer.inputs import Constant
from pipeline.models.transformer.model import MultiTalkTransformer
from pipeline.shapes import num_video_frames

from .. import prompts
from . import speech_encoder
from .windows import Window

TEXT_WIDTH = 64
SAME_PLACE_GAIN, SAME_PLACE_PAIRS = 4.0, 3


class TalkingModel(nn.Module):
    """Transformer and text encoder, which learn together; the tokenizer stays as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.tokenizer = sentencepiece.SentencePieceProcessor(model_proto=prompts.tokenizer())
        self.transformer = MultiTalkTransformer(
            num_attention_heads=2, text_dim=TEXT_WIDTH, freq_dim=256, ffn_dim=768, num_layers=6, image_dim=80,
            audio_features=(speech_encoder.LAYERS, speech_encoder.WIDTH), audio_intermediate_dim=128,
            audio_dim=speech_encoder.WIDTH, audio_tokens=4,
        )  # fmt: skip
        self.text_encoder = UMT5EncoderModel(
            UMT5Config(
                vocab_size=self.tokenizer.vocab_size(), d_model=TEXT_WIDTH, d_kv=32, d_ff=128, num_layers=2,
                num_heads=2, dropout_rate=0.0, is_encoder_decoder=False, tie_word_embeddings=False,
                feed_forward_proj="gated-gelu",
            )
        )  # fmt: skip
        _initialize(self.transformer)
        self.attention = TrainingAttention(self.transformer.config.text_len)
        self.transformer.set_attention(self.attention)

    def prompt(self, text: str) -> Prompt:
        """Prompt, encoded once for all windows of a step."""
        return Prompt(self, text)


class Prompt:
    """The transformer under one prompt."""

    def __init__(self, model: TalkingModel, text: str) -> None:
        self.model = model
        ids = [*model.tokenizer.encode(text), model.tokenizer.eos_id()]
        self.num_tokens = len(ids)
        batch = torch.tensor([ids], device=model.transformer.device)
        self.embeds = Constant(model.text_encoder(input_ids=batch).last_hidden_state[0])

    def velocity(self, latents: Tensor, sigma: float, window: Window, silent: bool) -> Tensor:
        """Velocity `16 t h w` of latents at a noise level, 0..1; `silent` leaves the window's audio out."""
        transformer = self.model.transformer
        audio = transformer.zero_audio(num_video_frames(window.size.t)) if silent else window.audio
        inputs = transformer.prepare_window(window.size, window.condition, window.image_embeds, window.masks)
        pass_inputs = transformer.prepare_pass(inputs, self.embeds.value, audio)
        pass_inputs.prompt_embeds = self.embeds
        self.model.attention.num_tokens = self.num_tokens
        return transformer(latents.to(transformer.device), 1000 * sigma, pass_inputs).float()


@torch.no_grad()
def _initialize(transformer: MultiTalkTransformer) -> None:
    """Start that learns fast: attentions change little yet, and one head attends to its own place in all frames.

    That head's queries and keys begin as one constant vector on the fast pairs of rows and columns, so that after the
    rotary embedding they fit best where row and column are the same.
    """
    head_dim = transformer.config.attention_head_dim
    pairs = head_dim // 2
    rows, columns = pairs - 2 * (pairs // 3), pairs - pairs // 3
    fast = [2 * (first + pair) for first in (rows, columns) for pair in range(SAME_PLACE_PAIRS)]
    for block in transformer.blocks:
        attention = block.attn1
        for linear, norm in ((attention.to_q, attention.norm_q), (attention.to_k, attention.norm_k)):
            linear.weight[:head_dim].mul_(0.1)
            linear.bias[:head_dim] = 0
            linear.bias[fast] = 1
            norm.weight[fast] = SAME_PLACE_GAIN
        for out in (block.attn2.to_out[0], block.audio_cross_attn.proj):
            out.weight.mul_(0.2)
    transformer.proj_out.weight.mul_(0.1)


class TrainingAttention:
    """Attention that costs less while training.

    The keys of a prompt's padding are all the same, so they are counted instead of attended to one by one. Everything
    else is, on a CPU in bfloat16, two products, whose gradients take half as long there as those of the fused kernel.
    """

    def __init__(self, text_len: int) -> None:
        self.text_len, self.num_tokens = text_len, text_len

    def __call__(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """`softmax(q k^T / sqrt(k)) v`, where the last key in use stands for all that are like it."""
        if key.shape[2] != self.text_len or self.num_tokens == self.text_len:
            if query.device.type != "cpu" or query.dtype is not torch.bfloat16:
                return F.scaled_dot_product_attention(query, key, value)
            weights = (query @ key.mT * query.shape[-1] ** -0.5).softmax(dim=-1)
            return weights.to(value.dtype) @ value
        num_keys, num_padding = self.num_tokens + 1, self.text_len - self.num_tokens
        bias = torch.zeros(num_keys, device=query.device, dtype=query.dtype)
        bias[-1] = math.log(num_padding)
        bias = bias.expand(1, 1, query.shape[2], -1)
        return F.scaled_dot_product_attention(query, key[:, :, :num_keys], value[:, :, :num_keys], attn_mask=bias)
