"""The maker of talking faces: drawings, speech, and a measure of lip sync that sees both."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from support.speech import needs_espeak

from benchmarks.lip_sync import SETTLING_FRAMES, eyes_psnr
from demo import speech
from demo.faces import draw, random_appearance, random_motion
from demo.lip_sync import implied_mouth, measure, mouth_openings
from demo.prompts import BROWS, MOODS, prompt
from demo.scenes import ClipMix, random_scene
from pipeline.audio.waveform import normalize_loudness


@needs_espeak
def test_the_same_stream_draws_the_same_clip():
    one, two = (random_scene(np.random.default_rng(3), 9).frames() for _ in range(2))
    assert (one == two).all()
    assert one.shape == (9, 128, one.shape[2], 3)


@needs_espeak
def test_lips_shut_between_the_vowels_of_mama_and_papa():
    samples = torch.from_numpy(speech.speak("ah pa ah ba ah", "en"))
    opening = implied_mouth(normalize_loudness(samples).numpy()).opening
    word = opening[: int(np.nonzero(opening > 0.3)[0].max())]
    assert word.max() > 0.9
    assert word[5:].min() < 0.2


@needs_espeak
def test_the_measure_finds_the_drawn_mouth_in_step_with_the_voice():
    scene = random_scene(np.random.default_rng(5), 60, num_people=1, late=False)
    sync = measure(mouth_openings(scene.frames())[0], implied_mouth(scene.sounds[0]).opening)
    assert sync.correlation > 0.99
    assert sync.lag == 0


def test_a_mouth_that_is_merely_wide_is_not_taken_for_an_open_one():
    random = np.random.default_rng(6)
    opening, width = random.uniform(0, 1, 40), random.uniform(-1, 1, 40)
    people = [(random_appearance(random), random_motion(random, opening, width, 1, 1))]
    openings = mouth_openings(draw(people, (200, 200, 200), 128, 128))[0]
    assert np.corrcoef(openings[3:], opening[3:])[0, 1] > 0.99


@needs_espeak
def test_the_measure_of_eyes_tells_the_prompts_expression_from_others():
    scene = random_scene(np.random.default_rng(7), 60, num_people=2, late=False, held_out=True)
    frames = scene.frames()[SETTLING_FRAMES:]
    assert min(eyes_psnr(scene, frames)) > 29
    assert max(eyes_psnr(replace(scene, brows=-scene.brows), frames)) < 25
    blur = frames.copy()
    rows, columns = scene.eye_box(1)
    blur[:, rows, columns] = frames[:, rows, columns].mean(axis=(1, 2), keepdims=True)
    first, second = eyes_psnr(scene, blur)
    assert first > 29 and second < 24


@needs_espeak
def test_people_of_a_plain_scene_keep_the_portraits_expression_and_no_prompt_names_one():
    scene = random_scene(np.random.default_rng(8), 30, mix=ClipMix(two=1, plain=1))
    assert len(scene.people) == 2
    assert all(not motion.smile.any() and not motion.brows.any() for _, motion in scene.people)
    expressions = {word for words in (*MOODS.values(), *BROWS.values()) for word in words}
    random = np.random.default_rng(9)
    sentences = {prompt(random, 0, 0, people) for people in (1, 2) for _ in range(50)}
    assert not expressions & {word.strip(".,") for sentence in sentences for word in sentence.split()}


def test_held_out_scenes_are_never_plain_and_never_of_pseudowords(monkeypatch):
    texts = []
    monkeypatch.setattr(speech, "speak", lambda text, *_: texts.append(text) or np.ones(8000, np.float32))
    mix = ClipMix(plain=1, pseudowords=1)
    scenes = [random_scene(np.random.default_rng(seed), 9, held_out=True, mix=mix) for seed in range(9)]
    assert all(scene.smile and scene.brows for scene in scenes)
    assert set(texts) <= {sentence for sentences in speech.HELD_OUT.values() for sentence in sentences}


@needs_espeak
def test_eyes_weigh_more_than_walls_and_mouths_more_than_eyes():
    scene = random_scene(np.random.default_rng(10), 30, num_people=2)
    weights = scene.loss_weights(eyes=5, mouths=7)
    assert weights.shape == (128, scene.width)
    assert set(np.unique(weights)) == {1, 5, 7}
    (rows, columns), (mouth_rows, _) = scene.eye_box(0), scene.mouth_box(0)
    middle = (columns.start + columns.stop) // 2
    assert weights[(rows.start + rows.stop) // 2, middle] == 5
    assert weights[(mouth_rows.start + mouth_rows.stop) // 2, middle] == 7


@needs_espeak
def test_only_the_one_who_speaks_moves_the_lips():
    for number in range(8):
        scene = random_scene(np.random.default_rng(number), 40, num_people=2, late=False)
        motions = [opening.std() for opening in mouth_openings(scene.frames(), 2)]
        voices = [implied_mouth(sound[: 40 * 640]).opening.std() for sound in scene.sounds]
        if min(voices) < 1e-3 < max(voices):
            assert motions[int(np.argmin(voices))] < motions[int(np.argmax(voices))]


def test_held_out_sentences_are_not_among_those_trained_on():
    training = {sentence for sentences in speech.SENTENCES.values() for sentence in sentences}
    assert not training & {sentence for sentences in speech.HELD_OUT.values() for sentence in sentences}
    assert not set(speech.VARIANTS) & set(speech.HELD_OUT_VARIANTS)


def test_pseudowords_are_ever_new_and_no_held_out_voice_reads_them():
    random = np.random.default_rng(11)
    sentences = [speech.pseudoword_sentence(random) for _ in range(200)]
    assert len(set(sentences)) == 200
    assert all(sentence.removesuffix(".").replace(" ", "").isalpha() for sentence in sentences)
    assert not set(speech.PSEUDOWORD_VOICES) & (set(speech.HELD_OUT) - {"en", "de"})


@needs_espeak
def test_a_longer_vocal_tract_speaks_lower_and_slower():
    plain, low = (speech.speak("ah", "en", tract_length=length) for length in (1.0, 1.25))
    assert len(low) == pytest.approx(1.25 * len(plain), rel=0.01)
    peaks = [np.abs(np.fft.rfft(samples, 2**15)).argmax() for samples in (plain, low)]
    assert peaks[1] == pytest.approx(peaks[0] / 1.25, rel=0.02)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_speakers_of_pseudowords_alone_have_vocal_tracts_of_any_length(share, monkeypatch):
    calls = []
    monkeypatch.setattr(speech, "speak", lambda *call: calls.append(call) or np.ones(8000, np.float32))
    speech.random_utterance(np.random.default_rng(12), 2.0, pseudoword_share=share)
    sentences = {sentence for sentences in speech.SENTENCES.values() for sentence in sentences}
    assert calls and all((text in sentences) == (length == 1.0) == (not share) for text, *_, length in calls)
