"""Speech of espeak-ng with the mouth that would have made it (see `demo.lip_sync`)."""

from __future__ import annotations

import io
import subprocess
from dataclasses import dataclass

import numpy as np
import soundfile
import soxr
import torch

from pipeline.audio.waveform import SAMPLE_RATE_HZ, normalize_loudness

from .lip_sync import implied_mouth

SENTENCES: dict[str, tuple[str, ...]] = {
    "en": (
        "Good morning, my name is Mabel and I paint maps of mountains.",
        "Please bring me a bigger blue umbrella before it begins to rain.",
        "We walked along the river until the sun went down behind the hills.",
        "How much wood would a woodchuck chuck? Nobody has ever asked him.",
        "The old piano in the corner has not been played for many years.",
        "Seven, eight, nine, ten. Ready or not, here I come!",
        "Maybe tomorrow we will bake apple pies and plum puddings.",
        "I believe that people remember what made them laugh.",
        "An honest answer is a window, not a wall.",
        "Far away, a small boat moves slowly over the quiet bay.",
        "Could you open the door for a moment? Thank you so much.",
        "He bought five papers, a pump and a brown bag of beans.",
        "What a wonderful evening! Even the moths are dancing.",
        "Open your mouth wide and say ah. Ah! Ooh! Ee!",
    ),
    "de": (
        "Guten Abend, meine Damen und Herren, mein Name ist Baumbach.",
        "Am Bahnhof warten manchmal mehr Bahnen als Menschen.",
        "Bitte bringen Sie mir einen Apfel und ein Buch.",
    ),
    "fr": (
        "Bonjour madame, je m'appelle Paul et j'habite au bord de la mer.",
        "Il pleut beaucoup, mais nous partons quand même demain matin.",
    ),
    "es": ("Mañana por la mañana vamos a comprar pan y manzanas.", "Me gusta mucho hablar con mi abuela Pepa."),
    "it": ("Buongiorno a tutti, mi chiamo Barbara e abito a Milano.", "Il mare di notte sembra una bella pianura."),
    "pl": ("Proszę bardzo, mamy piękną pogodę i dobrą herbatę.",),
    "pt": ("Bom dia, meu amigo, o mapa do mundo é muito bonito.",),
    "nl": ("Goedemorgen, mag ik een bruin brood met boter en appelmoes?",),
    "sv": ("Min mamma plockar blommor på berget om sommaren.",),
    "tr": ("Merhaba, benim babam balıkçı ve bu bizim büyük teknemiz.",),
}
HELD_OUT: dict[str, tuple[str, ...]] = {
    "en": (
        "Hello! I am only a drawing, but you can see that my lips follow every word I say.",
        "Many small drops make a mighty ocean, and maybe a good breakfast too.",
        "Who would have thought that a picture could tell its own story?",
    ),
    "de": ("Heute haben wir wunderbar viel Platz und überhaupt keine Eile.",),
    "fi": ("Hyvää huomenta, minun nimeni on Maija ja asun pienessä kaupungissa.",),
}
# Languages in Latin letters, by whose rules pseudowords are read; Finnish is held out.
PSEUDOWORD_VOICES = (
    "af", "cs", "cy", "da", "de", "en", "en-gb-scotland", "en-us", "eo", "es", "et", "eu", "fr", "ga", "hr", "hu", "id",
    "is", "it", "la", "lt", "lv", "nl", "pl", "pt", "pt-br", "ro", "sk", "sl", "sq", "sv", "sw", "tr", "vi",
)  # fmt: skip
SYLLABLES = ("cv", "cv", "cvc", "cvc", "cvv", "cvvc", "clv", "clvc", "cvlc")
LETTERS = {"c": "bbcdfghjkklmmmnnppprrsssttvwyz", "l": "lrn", "v": "aaaeeiioouu"}
VARIANTS = ("", "+m1", "+m2", "+m3", "+m4", "+m6", "+m7", "+f1", "+f2", "+f3", "+f4")
HELD_OUT_VARIANTS = ("+m5", "+f5")


@dataclass(frozen=True)
class Utterance:
    """Sound of a speaker and its mouth."""

    samples: np.ndarray  # mono, 16 kHz, at -23 LUFS
    opening: np.ndarray  # 0..1, one value a video frame
    width: np.ndarray  # -1..1


def random_utterance(
    random: np.random.Generator, duration_s: float, held_out: bool = False, pseudoword_share: float = 0.0
) -> Utterance:
    """Sentences of one speaker with pauses between them.

    Args:
        random: draws voice, sentences, pace, pitch and pauses.
        duration_s: of the sound.
        held_out: take sentences and voices that are never trained on.
        pseudoword_share: how often, 0..1, all words are pseudowords, and the vocal tract is of any length.
    """
    sentences, variants = (HELD_OUT, HELD_OUT_VARIANTS) if held_out else (SENTENCES, VARIANTS)
    pseudowords = not held_out and random.random() < pseudoword_share
    if pseudowords:
        voice, tract_length = str(random.choice(PSEUDOWORD_VOICES)), random.uniform(0.85, 1.18)
    else:
        voice, tract_length = str(random.choice(list(sentences))) if random.random() < 0.5 else "en", 1.0
    variant = str(random.choice(variants))
    parts, length = [_silence(random.uniform(0.0, 0.6))], 0
    while length < duration_s * SAMPLE_RATE_HZ:
        sentence = pseudoword_sentence(random) if pseudowords else str(random.choice(sentences[voice]))
        pace, pitch = int(random.integers(120, 200)), int(random.integers(25, 76))
        parts += [speak(sentence, voice + variant, pace, pitch, tract_length), _silence(random.uniform(0.1, 0.9))]
        length = sum(map(len, parts))
    samples = np.concatenate(parts)[: round(duration_s * SAMPLE_RATE_HZ)]
    samples = normalize_loudness(torch.from_numpy(samples)).numpy()
    return Utterance(samples, *implied_mouth(samples))


def pseudoword_sentence(random: np.random.Generator) -> str:
    """Sentence of three to eight random words of up to three syllables."""
    words = ("".join(_syllable(random) for _ in range(random.integers(1, 4))) for _ in range(random.integers(3, 9)))
    return " ".join(words) + "."


def _syllable(random: np.random.Generator) -> str:
    return "".join(str(random.choice(list(LETTERS[kind]))) for kind in random.choice(SYLLABLES))


def speak(text: str, voice: str, words_per_minute: int = 160, pitch: int = 50, tract_length: float = 1.0) -> np.ndarray:
    """Speech of espeak-ng, mono at 16 kHz; a longer vocal tract lowers and slows all of it by that factor."""
    command = ["espeak-ng", "-v", voice, "-s", str(words_per_minute), "-p", str(pitch), "--stdout", text]
    file = subprocess.run(command, capture_output=True, check=True).stdout
    samples, rate_hz = soundfile.read(io.BytesIO(file), dtype="float32")
    return soxr.resample(samples, rate_hz / tract_length, SAMPLE_RATE_HZ, quality="HQ")


def _silence(duration_s: float) -> np.ndarray:
    return np.zeros(round(duration_s * SAMPLE_RATE_HZ), np.float32)
