"""Random scenes of drawn people who speak: the training's clips and the benchmarks' tests."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from pipeline.shapes import FPS

from .faces import Appearance, Motion, draw, eye_box, mouth_box, random_appearance, random_background, random_motion
from .lip_sync import implied_mouth
from .speech import Utterance, random_utterance

HEIGHT, WIDTH_ONE, WIDTH_TWO = 128, 128, 192  # pixels
LATE_START = 40  # frames into the speech, when no face looks like its portrait any more


@dataclass(frozen=True)
class ClipMix:
    """Shares of the kinds of scenes in the training, 0..1."""

    two: float = 0.5  # scenes of two people
    late: float = 0.3  # scenes that start `LATE_START` frames into the speech
    plain: float = 0.35  # scenes whose prompt names no expression: faces keep the portrait's
    pseudowords: float = 0.7  # speakers of pseudowords


@dataclass(frozen=True)
class Scene:
    """People before a wall, and their speech."""

    people: list[tuple[Appearance, Motion]]
    background: tuple[int, int, int]
    smile: int = 0  # -1, 1, or 0 where the prompt names no expression
    brows: int = 0
    sounds: tuple[np.ndarray, ...] = ()  # of each person, from the start of its speech
    start: int = 0  # the first frame within the speech

    @property
    def width(self) -> int:
        """Width of the frames in pixels."""
        return WIDTH_ONE if len(self.people) == 1 else WIDTH_TWO

    def frames(self) -> np.ndarray:
        """Frames `f h w 3` uint8."""
        return draw(self.people, self.background, HEIGHT, self.width)

    def eye_box(self, index: int) -> tuple[slice, slice]:
        """Rows and columns of the pixels where a person's eyes and brows may be."""
        return eye_box(self.people[index][0], index, len(self.people), HEIGHT, self.width)

    def mouth_box(self, index: int) -> tuple[slice, slice]:
        """Rows and columns of the pixels where a person's mouth may be."""
        return mouth_box(self.people[index][0], index, len(self.people), HEIGHT, self.width)

    def loss_weights(self, eyes: float, mouths: float) -> np.ndarray:
        """Weights `h w` of the pixels in a loss: 1, `eyes` at eyes and brows, `mouths` where a mouth may be."""
        weights = np.ones((HEIGHT, self.width), np.float32)
        for index in range(len(self.people)):
            weights[self.eye_box(index)] = eyes
            weights[self.mouth_box(index)] = mouths
        return weights


def random_scene(
    random: np.random.Generator, num_frames: int, num_people: int | None = None, late: bool | None = None,
    held_out: bool = False, mix: ClipMix = ClipMix(),
) -> Scene:  # fmt: skip
    """Scene of people who speak, with the expressions that its prompt names.

    Args:
        random: draws everything.
        num_frames: of the scene.
        num_people: 1 or 2; None draws it.
        late: starts `LATE_START` frames into the speech; None draws it.
        held_out: sentences and voices that are never trained on, and a prompt that names an expression.
        mix: the shares by which kinds are drawn.
    """
    if num_people is None:
        num_people = 2 if random.random() < mix.two else 1
    if late is None:
        late = random.random() < mix.late
    start = LATE_START if late else 0
    smile, brows = (int(random.choice([-1, 1])) for _ in range(2))
    if not held_out and random.random() < mix.plain:
        smile, brows = 0, 0
    duration_s = (start + num_frames) / FPS
    utterances = [random_utterance(random, duration_s, held_out, mix.pseudowords) for _ in range(num_people)]
    if num_people == 2:
        utterances = _dialogue(random, utterances)
    people = []
    for utterance in utterances:
        motion = random_motion(random, utterance.opening, utterance.width, smile, brows)
        people.append((random_appearance(random), motion[start : start + num_frames]))
    sounds = tuple(utterance.samples for utterance in utterances)
    return Scene(people, random_background(random), smile, brows, sounds, start)


def _dialogue(random: np.random.Generator, utterances: list[Utterance]) -> list[Utterance]:
    """Mostly one of two is silent, all the time or from some moment on; sometimes both speak."""
    manner = random.random()
    if manner < 0.2:
        return utterances
    num_samples = len(utterances[0].samples)
    handover = 0 if manner < 0.6 else int(num_samples * random.uniform(0.3, 0.7))
    first, second = utterances[:: int(random.choice([-1, 1]))]
    pair = [_with_silence(first, slice(handover, None)), _with_silence(second, slice(0, handover))]
    return pair[:: int(random.choice([-1, 1]))]


def _with_silence(utterance: Utterance, silence: slice) -> Utterance:
    samples = utterance.samples.copy()
    samples[silence] = 0
    opening, width = implied_mouth(samples)
    return replace(utterance, samples=samples, opening=opening, width=width)
