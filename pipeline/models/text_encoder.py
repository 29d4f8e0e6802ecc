"""umT5: prompts as embeddings, cleaned and cut into tokens before."""

from __future__ import annotations

import html
import logging

import ftfy
import torch
from sentencepiece import SentencePieceProcessor
from torch import Tensor
from transformers import UMT5EncoderModel

from ..errors import WeightsError

logger = logging.getLogger(__name__)

TEXT_LEN = 512  # tokens that the video transformer attends to


def clean(text: str) -> str:
    """The text with its encoding mended, its HTML entities resolved and its white space collapsed."""
    return " ".join(html.unescape(html.unescape(ftfy.fix_text(text))).split())


class TextEncoder:
    """umT5 with its tokenizer.

    Args:
        model: the encoder; moved around by its owner.
        tokenizer: the sentencepiece model that it was trained with.
        text_len: tokens that a prompt may have, its end included.

    Raises:
        WeightsError: the tokenizer knows more tokens than the encoder.
    """

    def __init__(self, model: UMT5EncoderModel, tokenizer: SentencePieceProcessor, text_len: int = TEXT_LEN):
        if tokenizer.vocab_size() > model.config.vocab_size:
            raise WeightsError(
                f"The tokenizer has {tokenizer.vocab_size()} tokens, the text encoder {model.config.vocab_size}. "
                f"Use the tokenizer of google/umt5-xxl with umT5-XXL."
            )
        self.model = model
        self.text_len = text_len
        self._tokenizer = tokenizer

    def tokenize(self, text: str) -> list[int]:
        """The cleaned text's tokens and the end token, at most `text_len`; the log names how many are left."""
        tokens = self._tokenizer.encode(clean(text))
        if len(tokens) >= self.text_len:
            logger.warning("The prompt has %d tokens; the first %d are used.", len(tokens), self.text_len - 1)
        return [*tokens[: self.text_len - 1], self._tokenizer.eos_id()]

    def encode(self, text: str) -> Tensor:
        """The prompt's embeddings, `n d` in float32 on the CPU: a row for each token and no padding."""
        ids = torch.tensor(self.tokenize(text))
        return encode_ids(self.model, ids, torch.ones_like(ids))


@torch.no_grad()
def encode_ids(model: UMT5EncoderModel, ids: Tensor, mask: Tensor) -> Tensor:
    """The embeddings `n d`, in float32 on the CPU, of the `ids` (`n`) whose `mask` (`n`) is not 0.

    Padding is cut off before the encoder rather than masked inside: what is masked weighs exactly nothing, and a short
    prompt then costs a fraction of `text_len`.
    """
    ids = ids[mask.bool()].to(model.device)
    hidden = model(input_ids=ids[None], attention_mask=torch.ones_like(ids)[None]).last_hidden_state
    return hidden[0].float().cpu()
