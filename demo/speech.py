"""Speech from espeak-ng, and the mouth that would have made it (see `demo.lip_sync`)."""

from __future__ import annotations

import io
import subprocess
from dataclasses import dataclass

import numpy as np
import soundfile
import soxr
from pyloudnorm import Meter

from .lip_sync import implied_mouth

RATE_HZ = 16000
FPS = 25
LOUDNESS_LUFS = -23.0

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
# Words that nobody has are read aloud by rules of languages that are written in Latin letters; Finnish is held out.
READERS = (
    "af", "cs", "cy", "da", "de", "en", "en-gb-scotland", "en-us", "eo", "es", "et", "eu", "fr", "ga", "hr", "hu", "id",
    "is", "it", "la", "lt", "lv", "nl", "pl", "pt", "pt-br", "ro", "sk", "sl", "sq", "sv", "sw", "tr", "vi",
)  # fmt: skip
SYLLABLES = ("cv", "cv", "cvc", "cvc", "cvv", "cvvc", "clv", "clvc", "cvlc")
LETTERS = {"c": "bbcdfghjkklmmmnnppprrsssttvwyz", "l": "lrn", "v": "aaaeeiioouu"}
VARIANTS = ("", "+m1", "+m2", "+m3", "+m4", "+m6", "+m7", "+f1", "+f2", "+f3", "+f4")
HELD_OUT_VARIANTS = ("+m5", "+f5")


@dataclass(frozen=True)
class Utterance:
    """A sound and its mouth."""

    samples: np.ndarray  # mono, 16 kHz, as loud as the engine makes it
    opening: np.ndarray  # 0..1, one value a video frame
    width: np.ndarray  # -1..1


def random_utterance(
    random: np.random.Generator, duration_s: float, held_out: bool = False, made_up: float = 0.0
) -> Utterance:
    """Somebody says sentences, with pauses, for so long.

    Args:
        held_out: sentences and voices that are never trained on.
        made_up: how often all words are made up, and throats are of any size.
    """
    sentences, variants = (HELD_OUT, HELD_OUT_VARIANTS) if held_out else (SENTENCES, VARIANTS)
    strange = bool(made_up) and random.random() < made_up  # without any all draws are as they always were
    if strange:
        voice, throat = str(random.choice(READERS)), random.uniform(0.85, 1.18)
    else:
        voice, throat = str(random.choice(list(sentences))) if random.random() < 0.5 else "en", 1.0
    variant = str(random.choice(variants))
    parts, length = [_silence(random.uniform(0.0, 0.6))], 0
    while length < duration_s * RATE_HZ:
        sentence = _made_up_sentence(random) if strange else str(random.choice(sentences[voice]))
        spoken = speak(sentence, voice + variant, int(random.integers(120, 200)), int(random.integers(25, 76)), throat)
        parts += [spoken, _silence(random.uniform(0.1, 0.9))]
        length = sum(map(len, parts))
    samples = normalized(np.concatenate(parts)[: round(duration_s * RATE_HZ)])
    return Utterance(samples, *implied_mouth(samples))


def _made_up_sentence(random: np.random.Generator) -> str:
    words = ("".join(_syllable(random) for _ in range(random.integers(1, 4))) for _ in range(random.integers(3, 9)))
    return " ".join(words) + "."


def _syllable(random: np.random.Generator) -> str:
    return "".join(str(random.choice(list(LETTERS[kind]))) for kind in random.choice(SYLLABLES))


def speak(text: str, voice: str, words_per_minute: int = 160, pitch: int = 50, throat: float = 1.0) -> np.ndarray:
    """What espeak-ng says, mono at 16 kHz; a throat of another length lowers and slows all of it by that factor."""
    command = ["espeak-ng", "-v", voice, "-s", str(words_per_minute), "-p", str(pitch), "--stdout", text]
    spoken = subprocess.run(command, capture_output=True, check=True).stdout
    samples, rate_hz = soundfile.read(io.BytesIO(spoken), dtype="float32")
    return soxr.resample(samples, rate_hz / throat, RATE_HZ, quality="HQ")


def normalized(samples: np.ndarray) -> np.ndarray:
    """As loud as the engine makes every speaker; silence stays silence."""
    loudness = Meter(RATE_HZ).integrated_loudness(samples.astype(np.float64))
    if abs(loudness) > 100:
        return samples
    return (samples * 10 ** ((LOUDNESS_LUFS - loudness) / 20)).astype(np.float32)


def _silence(duration_s: float) -> np.ndarray:
    return np.zeros(round(duration_s * RATE_HZ), np.float32)
