"""Prompts about drawn faces, and the small tokenizer of their words."""

from __future__ import annotations

import io
from itertools import product

import numpy as np
import sentencepiece

from pipeline.conditioning.prompts import DEFAULT_NEGATIVE_PROMPT

MOODS = {1: ("smiling", "happy", "cheerful"), -1: ("serious", "sad", "grave")}
BROWS = {1: ("raised", "lifted", "high"), -1: ("lowered", "knitted", "low")}
PEOPLE = ("woman", "man", "person", "character", "face")
TEMPLATES = (
    "A {mood} {person} with {brows} brows is talking.",
    "A {mood} {person} with {brows} brows talks to the camera.",
    "A drawn portrait of a {mood} {person}, {brows} brows, speaking.",
    "{mood} {person}, {brows} brows, talking",
)
TEMPLATES_TWO = (
    "Two {mood} people with {brows} brows are talking.",
    "Two {mood} people with {brows} brows talk to each other.",
    "{mood} people, {brows} brows, two of them talking",
)
PLAIN = (
    "A {person} is talking.",
    "A {person} is talking to the camera.",
    "A drawn portrait of a {person}, speaking.",
    "{person} talking",
)
PLAIN_TWO = ("Two people are talking.", "Two people talk to each other.", "people, two of them talking")


def prompt(random: np.random.Generator, smile: int, brows: int, num_people: int = 1) -> str:
    """Prompt for faces that smile (1) or are serious (-1), with raised (1) or lowered (-1) brows.

    Where both are 0 it has no word of them, and for two people it may speak of one, as the default prompt does.
    """
    if smile == brows == 0:
        template = str(random.choice(PLAIN if num_people == 1 else PLAIN + PLAIN_TWO))
        return template.format(person=str(random.choice(PEOPLE)))
    template = str(random.choice(TEMPLATES if num_people == 1 else TEMPLATES_TWO))
    mood, height = str(random.choice(MOODS[smile])), str(random.choice(BROWS[brows]))
    return template.format(mood=mood, brows=height, person=str(random.choice(PEOPLE)))


def tokenizer() -> bytes:
    """Sentencepiece model of the words above, with umT5's special tokens (pad 0, end 1, unknown 2)."""
    moods, heights = (sum(words.values(), ()) for words in (MOODS, BROWS))
    sentences = [
        template.format(mood=mood, brows=height, person=person)
        for template, mood, height, person in product(TEMPLATES + TEMPLATES_TWO, moods, heights, PEOPLE)
    ]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*sentences, *[DEFAULT_NEGATIVE_PROMPT] * 50]), model_writer=model, vocab_size=400,
        model_type="unigram", hard_vocab_limit=False, byte_fallback=True, pad_id=0, eos_id=1, unk_id=2, bos_id=-1,
        num_threads=1, minloglevel=2,
    )  # fmt: skip
    return model.getvalue()
