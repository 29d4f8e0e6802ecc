"""What the third stage trains: the transformer with its audio adapter, and the encoder that reads it the prompt."""

from __future__ import annotations

import math

import sentencepiece
import torch
import torch.nn.functional as F
from pipeline.models.transformer.prepared import Constant
from torch import Tensor, nn
from transformers import UMT5Config, UMT5EncoderModel

from pipeline.models.transformer.model import MultiTalkTransformer
from pipeline.shapes import LatentSize, num_video_frames

from . import train_audio

TEXT_WIDTH = 64
SAME_PLACE_GAIN, SAME_PLACE_PAIRS = 4.0, 3


class TalkingModel(nn.Module):
    """What learns in this stage."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.transformer = MultiTalkTransformer(
            num_attention_heads=2, text_dim=TEXT_WIDTH, freq_dim=256, ffn_dim=768, num_layers=6, image_dim=80,
            audio_features=(train_audio.LAYERS, train_audio.WIDTH), audio_intermediate_dim=128,
            audio_dim=train_audio.WIDTH, audio_tokens=4,
        )  # fmt: skip
        self.text_encoder = UMT5EncoderModel(
            UMT5Config(
                vocab_size=vocabulary, d_model=TEXT_WIDTH, d_kv=32, d_ff=128, num_layers=2, num_heads=2,
                dropout_rate=0.0, is_encoder_decoder=False, tie_word_embeddings=False, feed_forward_proj="gated-gelu",
            )
        )  # fmt: skip
        _prepare(self.transformer)
        self.attend = TrainingAttention(self.transformer.config.text_len)
        self.transformer.set_attention(self.attend)


@torch.no_grad()
def _prepare(transformer: MultiTalkTransformer) -> None:
    """A start that learns fast: attentions change nothing yet, and one head looks at its own place in all frames.

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
    """What attention costs less for while training.

    The prompt's padding is counted instead of looked at: all its keys are the same. Everything else is, on a CPU in
    bfloat16, a matter of two products, whose gradients take half as long there as those of the fused attention.
    """

    def __init__(self, text_len: int) -> None:
        self.text_len, self.num_tokens = text_len, text_len

    def __call__(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """`softmax(q k^T / sqrt(k)) v`, where the last kept key stands for all that are like it."""
        if key.shape[2] != self.text_len or self.num_tokens == self.text_len:
            if query.device.type != "cpu" or query.dtype is not torch.bfloat16:
                return F.scaled_dot_product_attention(query, key, value)
            weights = (query @ key.mT * query.shape[-1] ** -0.5).softmax(dim=-1)
            return weights.to(value.dtype) @ value
        kept, padding = self.num_tokens + 1, self.text_len - self.num_tokens
        bias = torch.zeros(kept, device=query.device, dtype=query.dtype)
        bias[-1] = math.log(padding)
        bias = bias.expand(1, 1, query.shape[2], -1)
        return F.scaled_dot_product_attention(query, key[:, :, :kept], value[:, :, :kept], attn_mask=bias)


class Words:
    """A prompt, which is read once for all clips of a step."""

    def __init__(self, model: TalkingModel, tokenizer: sentencepiece.SentencePieceProcessor, text: str) -> None:
        self.model = model
        ids = [*tokenizer.encode(text), tokenizer.eos_id()]
        self.num_tokens = len(ids)
        ids = torch.tensor([ids], device=model.transformer.device)
        self.embeds = Constant(model.text_encoder(input_ids=ids).last_hidden_state[0])

    def velocity(self, noisy: Tensor, sigma: float, example: dict, silent: bool) -> Tensor:
        """Of latents at a noise level, in a window (`window_of`) that hears its sound or silence."""
        transformer = self.model.transformer
        size = LatentSize(*noisy.shape[1:])
        window = transformer.prepare_window(size, example["condition"], example["image"], example["masks"])
        audio = transformer.zero_audio(num_video_frames(size.t)) if silent else example["audio"]
        heard = transformer.prepare_pass(window, self.embeds.value, audio)
        heard.prompt_embeds = self.embeds
        self.model.attend.num_tokens = self.num_tokens
        return transformer(noisy.to(transformer.device), 1000 * sigma, heard).float()
