"""The maker of talking faces: what is drawn, what is said, and that the measure of lip sync sees it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from support.speech import needs_espeak

PACK = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def root_on_path(monkeypatch):
    """`demo` is run from the repository's root, like the benchmarks."""
    monkeypatch.syspath_prepend(str(PACK))


@needs_espeak
def test_the_same_stream_draws_the_same_clip():
    from demo.dataset import random_scene

    one, two = (random_scene(np.random.default_rng(3), 9).frames() for _ in range(2))
    assert (one == two).all()
    assert one.shape == (9, 128, one.shape[2], 3)


@needs_espeak
def test_lips_shut_between_the_vowels_of_mama_and_papa():
    from demo.lip_sync import implied_mouth
    from demo.speech import normalized, speak

    opening = implied_mouth(normalized(speak("ah pa ah ba ah", "en"))).opening
    spoken = opening[: int(np.nonzero(opening > 0.3)[0].max())]
    assert spoken.max() > 0.9
    assert spoken[5:].min() < 0.2


@needs_espeak
def test_the_measure_finds_the_drawn_mouth_in_step_with_the_voice():
    from demo.dataset import random_scene
    from demo.lip_sync import implied_mouth, measure, mouth_openings

    scene = random_scene(np.random.default_rng(5), 60, num_people=1, late=False)
    sync = measure(mouth_openings(scene.frames())[0], implied_mouth(scene.sounds[0]).opening)
    assert sync.correlation > 0.99
    assert sync.lag == 0


def test_a_mouth_that_is_merely_wide_is_not_taken_for_an_open_one():
    from demo.faces import draw, random_appearance, random_motion
    from demo.lip_sync import mouth_openings

    random = np.random.default_rng(6)
    opening, width = random.uniform(0, 1, 40), random.uniform(-1, 1, 40)
    people = [(random_appearance(random), random_motion(random, opening, width, 1, 1))]
    seen = mouth_openings(draw(people, (200, 200, 200), 128, 128))[0]
    assert np.corrcoef(seen[3:], opening[3:])[0, 1] > 0.99


@needs_espeak
def test_the_measure_of_eyes_tells_drawn_looks_from_others():
    from benchmarks.lip_sync import SETTLED, eyes_psnr
    from demo.dataset import random_scene

    scene = random_scene(np.random.default_rng(7), 60, num_people=2, late=False)
    frames = scene.frames()[SETTLED:]
    assert min(eyes_psnr(scene, frames)) > 29
    assert max(eyes_psnr(replace(scene, brows=-scene.brows), frames)) < 25
    blurred = frames.copy()
    rows, columns = scene.eye_box(1)
    blurred[:, rows, columns] = frames[:, rows, columns].mean(axis=(1, 2), keepdims=True)
    sharp, lost = eyes_psnr(scene, blurred)
    assert sharp > 29 and lost < 24


@needs_espeak
def test_who_is_given_no_look_keeps_that_of_the_portrait_and_no_prompt_says_one():
    from demo.dataset import Casting, random_scene
    from demo.prompts import BROWS, MOODS, prompt

    scene = random_scene(np.random.default_rng(8), 30, casting=Casting(two=1, plain=1))
    assert len(scene.people) == 2
    assert all(not motion.smile.any() and not motion.brows.any() for _, motion in scene.people)
    looks = {word for words in (*MOODS.values(), *BROWS.values()) for word in words}
    random = np.random.default_rng(9)
    said = {prompt(random, 0, 0, people) for people in (1, 2) for _ in range(50)}
    assert not looks & {word.strip(".,") for sentence in said for word in sentence.split()}


@needs_espeak
def test_eyes_weigh_more_than_walls_and_mouths_more_than_eyes():
    from demo.dataset import EYE_WEIGHT, MOUTH_WEIGHT, random_scene

    scene = random_scene(np.random.default_rng(10), 30, num_people=2)
    weights = scene.weights()
    assert weights.shape == (128 // 8, scene.width // 8)
    assert (weights.min(), weights.max()) == (1, MOUTH_WEIGHT)
    (rows, columns), (mouth_rows, _) = scene.eye_box(0), scene.mouth_box(0)
    middle = (columns.start + columns.stop) // 16
    assert weights[(rows.start + rows.stop) // 16, middle] == EYE_WEIGHT
    assert weights[(mouth_rows.start + mouth_rows.stop) // 16, middle] == MOUTH_WEIGHT


@needs_espeak
def test_only_the_one_who_speaks_moves_the_lips():
    from demo.dataset import random_scene
    from demo.lip_sync import implied_mouth, mouth_openings

    for number in range(8):
        scene = random_scene(np.random.default_rng(number), 40, num_people=2, late=False)
        moving = [opening.std() for opening in mouth_openings(scene.frames(), 2)]
        speaking = [implied_mouth(sound[: 40 * 640]).opening.std() for sound in scene.sounds]
        if min(speaking) < 1e-3 < max(speaking):
            assert moving[int(np.argmin(speaking))] < moving[int(np.argmax(speaking))]


def test_held_out_sentences_are_not_among_those_trained_on():
    from demo.speech import HELD_OUT, HELD_OUT_VARIANTS, SENTENCES, VARIANTS

    trained = {sentence for sentences in SENTENCES.values() for sentence in sentences}
    assert not trained & {sentence for sentences in HELD_OUT.values() for sentence in sentences}
    assert not set(VARIANTS) & set(HELD_OUT_VARIANTS)


def test_made_up_words_are_ever_new_and_nobody_held_out_reads_them():
    from demo.speech import HELD_OUT, READERS, _made_up_sentence

    random = np.random.default_rng(11)
    sentences = [_made_up_sentence(random) for _ in range(200)]
    assert len(set(sentences)) == 200
    assert all(sentence.removesuffix(".").replace(" ", "").isalpha() for sentence in sentences)
    assert not set(READERS) & (set(HELD_OUT) - {"en", "de"})


@needs_espeak
def test_a_longer_throat_speaks_lower_and_slower_and_strangers_alone_have_one(monkeypatch):
    from demo import speech

    plain, low = (speech.speak("ah", "en", throat=throat) for throat in (1.0, 1.25))
    assert len(low) == pytest.approx(1.25 * len(plain), rel=0.01)
    loudest = [np.abs(np.fft.rfft(samples, 2**15)).argmax() for samples in (plain, low)]
    assert loudest[1] == pytest.approx(loudest[0] / 1.25, rel=0.02)
    known = {sentence for sentences in speech.SENTENCES.values() for sentence in sentences}
    for made_up in (0.0, 1.0):
        said = []
        monkeypatch.setattr(speech, "speak", lambda *call, said=said: said.append(call) or np.ones(8000, np.float32))
        speech.random_utterance(np.random.default_rng(12), 2.0, made_up=made_up)
        assert said and all((text in known) == (throat == 1.0) == (not made_up) for text, *_, throat in said)


def test_folding_statistics_into_the_vae_changes_no_picture():
    from diffusers import AutoencoderKLWan

    from demo.export import PUBLISHED, fold

    torch.manual_seed(0)
    plain, folded = (AutoencoderKLWan(base_dim=4, z_dim=16, num_res_blocks=1).eval() for _ in range(2))
    folded.load_state_dict(plain.state_dict())
    mean, std = torch.randn(16, 1, 1, 1), torch.rand(16, 1, 1, 1) + 0.5
    fold(folded, (mean, std), PUBLISHED)
    frames = torch.randn(1, 3, 5, 16, 16)
    with torch.no_grad():
        latents = plain.encode(frames).latent_dist.mode()
        theirs = folded.encode(frames).latent_dist.mode()
        published = [value[:, None, None, None] for value in PUBLISHED]
        assert torch.allclose((theirs[0] - published[0]) / published[1], (latents[0] - mean) / std, atol=1e-3)
        assert torch.allclose(folded.decode(theirs).sample, plain.decode(latents).sample, atol=1e-3)


def test_counting_a_prompts_padding_is_the_same_as_looking_at_it():
    from demo.talking_model import TrainingAttention

    attend = TrainingAttention(64)
    query, key, value = (torch.randn(1, 2, n, 16) for n in (5, 64, 64))
    key[:, :, 9:], value[:, :, 9:] = key[:, :, 9:10], value[:, :, 9:10]
    looked = torch.nn.functional.scaled_dot_product_attention(query, key, value)
    assert torch.allclose(attend(query, key, value), looked, atol=1e-5)
    coarse = attend(*(x.bfloat16() for x in (query, key, value)))
    assert torch.allclose(coarse.float(), looked, atol=3e-2)
    attend.num_tokens = 9
    assert torch.allclose(attend(query, key, value), looked, atol=1e-5)
