import io
import logging

import pytest
import sentencepiece
import torch
from multitalk_pack.pipeline.conditioning.prompts import DEFAULT_NEGATIVE_PROMPT, split_prompts
from multitalk_pack.pipeline.errors import WeightsError
from multitalk_pack.pipeline.models.text_encoder import (
    TextEncoder,
    clean,
    encode_ids,
)
from multitalk_pack.pipeline.weights.key_maps import rename_text
from support.golden import Golden
from transformers import UMT5Config, UMT5EncoderModel

GOLDEN = Golden("t5")


def build_encoder(**sizes):
    return UMT5EncoderModel(UMT5Config(feed_forward_proj="gated-gelu", **sizes)).eval()


@pytest.fixture(scope="module")
def published():
    config = GOLDEN.config
    model = build_encoder(
        vocab_size=config["vocab_size"],
        d_model=config["dim"],
        d_kv=config["dim_attn"] // config["num_heads"],
        d_ff=config["dim_ffn"],
        num_layers=config["num_layers"],
        num_heads=config["num_heads"],
        relative_attention_num_buckets=config["num_buckets"],
        relative_attention_max_distance=config["max_distance"],
        layer_norm_epsilon=config["norm_eps"],
    )
    state = {rename_text(key): tensor for key, tensor in GOLDEN.state().items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected and set(missing) <= {"encoder.embed_tokens.weight"}
    return model


@pytest.mark.parametrize("case", GOLDEN.cases)
def test_the_embeddings_are_the_published_ones(published, case):
    GOLDEN.assert_close(
        encode_ids(published, GOLDEN[f"in.{case}.ids"], GOLDEN[f"in.{case}.mask"]), f"out.{case}.context"
    )


@pytest.mark.parametrize("case", GOLDEN.cases)
def test_padding_that_is_masked_changes_nothing(published, case):
    ids, mask = GOLDEN[f"in.{case}.ids"], GOLDEN[f"in.{case}.mask"]
    padded = published(input_ids=ids[None], attention_mask=mask[None]).last_hidden_state[0, mask.bool()]
    assert torch.allclose(encode_ids(published, ids, mask), padded, atol=1e-5)


@pytest.fixture(scope="module")
def tokenizer():
    """A sentencepiece model with umT5's special tokens, trained on a few words."""
    text = "a woman is talking to the camera and a man listens with some interest while music plays "
    sentences = [text[i:] + text[:i] for i, letter in enumerate(text) if letter == " "]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences), model_writer=model, vocab_size=60, hard_vocab_limit=False,
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2,
    )  # fmt: skip
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


@pytest.fixture(scope="module")
def encoder(tokenizer):
    torch.manual_seed(0)
    model = build_encoder(vocab_size=64, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2)
    return TextEncoder(model, tokenizer, text_len=32)


def test_a_prompt_ends_with_the_end_token(encoder, tokenizer):
    tokens = encoder.tokenize("a woman is talking")
    assert tokens[-1] == tokenizer.eos_id() == 1
    assert tokenizer.decode(tokens[:-1]) == "a woman is talking"
    assert encoder.encode("a woman is talking").shape == (len(tokens), 16)


def test_an_empty_prompt_is_its_end_token(encoder):
    assert encoder.tokenize("  \n ") == [1]
    assert encoder.encode("").shape == (1, 16)


def test_a_long_prompt_is_cut_and_the_log_says_so(encoder, caplog):
    with caplog.at_level(logging.WARNING):
        tokens = encoder.tokenize("talking " * 10_000)
    assert len(tokens) == 32 and tokens[-1] == 1
    assert "the first 31 are used" in caplog.text
    assert encoder.encode("talking " * 10_000).shape == (32, 16)


def test_a_prompt_that_just_fits_is_not_cut(encoder, caplog):
    one = len(encoder.tokenize("a")) - 1
    with caplog.at_level(logging.WARNING):
        tokens = encoder.tokenize(" ".join("a" * (31 // one)))
    assert not caplog.records and len(tokens) == 31 // one * one + 1


def test_a_tokenizer_of_another_model_is_refused(tokenizer):
    model = build_encoder(vocab_size=16, d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2)
    with pytest.raises(WeightsError, match="text encoder 16"):
        TextEncoder(model, tokenizer)


def test_cleaning_mends_what_copying_broke():
    assert clean("  A   woman\n talks &amp;amp; smiles,\tschÃ¶n ") == "A woman talks & smiles, schön"


@pytest.mark.parametrize(
    ("text", "prompts"),
    [
        ("one", ["one"]),
        ("", [""]),
        (" one | two ", ["one", "two"]),
        ("one||two", ["one", "one", "two"]),
        ("|two", ["", "two"]),
        ("one|", ["one", "one"]),
    ],
)
def test_windows_have_their_prompts(text, prompts):
    assert split_prompts(text) == prompts


def test_the_negative_prompt_is_clean():
    assert clean(DEFAULT_NEGATIVE_PROMPT) == DEFAULT_NEGATIVE_PROMPT
