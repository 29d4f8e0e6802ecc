"""The third stage: the transformer, its audio adapter and the text encoder learn to continue a portrait as speech.

The objective is that of the published model: of `x = (1 - sigma) clean + sigma noise` the velocity that leads back to
the clean latents, `(x - clean) / sigma`, is asked. All clips of a step share one prompt, whose tokens are then embedded
once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import sentencepiece
import torch
from torch import Tensor

from pipeline.models.text_encoder import DEFAULT_NEGATIVE_PROMPT
from pipeline.sampling.guidance import Pass

from . import prompts, states
from .dataset import EYE_WEIGHT
from .numbers import fast_numbers
from .run import Run, phase_at, total_steps
from .talking_model import TalkingModel, Words
from .windows import Clips, kind_of, latent_statistics, window_of

LOW_NOISE = (0.05, 0.8)  # noise levels at which guidance is to add nothing
SAME_PLACE_GAIN, SAME_PLACE_PAIRS = 4.0, 3


@dataclass(frozen=True)
class Dropped:
    """How often a condition is left out, so that guidance has something to compare with."""

    text: float = 0.1
    audio: float = 0.1  # of the clips that keep their text, and of those that do not
    both: float = 0.05


@dataclass(frozen=True)
class Phase:
    """Clips of some kinds and lengths for a number of steps."""

    steps: int
    batch: int
    shards: tuple[str, ...]
    lengths: tuple[int, ...]  # in latent frames, at most: a clip that is shorter is taken whole
    shift: float = 3.0  # of the noise levels that are trained at
    overdone: float = 0.0  # how much larger or smaller than they are motions may seem, see `states.overdone`
    uneven: float = 0.0  # the same for each latent frame by itself
    guided: float = 0.0  # share of the clips that stand where guidance leads instead, see `states.guided`
    guided_steps: int = 1  # of guidance to there
    settled: bool = False  # at `LOW_NOISE` all clips stand where noise brought them
    asked_guided: float = 0.0  # share of the clips, at `LOW_NOISE`, of which the guided velocity is asked as well
    dropped: Dropped = Dropped()
    worn: float = 0.0  # how far what is known of a continued clip may be off, see `window_of`


PHASES = (
    Phase(800, 6, ("short",), (3, 5)), Phase(800, 5, ("short",), (7, 9)), Phase(1000, 3, ("long",), (13, 21, 25)),
    Phase(1700, 4, ("long",), (9, 13, 21, 25), shift=5.0, overdone=1.5),
    # At text scale 3 and audio scale 4 a step is 3 (all) + (no text) - 3 (neither): the last one is to be as good.
    Phase(2300, 4, ("long",), (9, 13, 21, 25), shift=5.0, overdone=1.5, dropped=Dropped(0.2, 0.05, both=0.2)),
    Phase(900, 4, ("mixed",), (9, 13, 21), shift=5.0, overdone=1.5, dropped=Dropped(0.2, 0.05, both=0.2)),
    # Brows are painted anew while they move, in the first frames: many faces, most of them briefly.
    Phase(
        1000, 7, ("mixed", "brief"), (3, 5, 5, 9, 21), shift=5.0, overdone=1.5, worn=0.3,
        dropped=Dropped(0.2, 0.05, both=0.2),
    ),
    # The bundled weights learnt up to here from latents of a VAE that had not yet learnt eyes (`train_vae.train_eyes`).
    Phase(
        1600, 7, ("mixed", "brief"), (3, 5, 9, 13, 21), shift=5.0, overdone=1.5, worn=0.3,
        dropped=Dropped(0.2, 0.05, both=0.2),
    ),
    # And up to here from those of one that mended nothing. Audio scale 4 overdoes fast motions, and slow ones less.
    Phase(
        1600, 7, ("mixed", "brief"), (3, 5, 9, 13, 21), shift=5.0, overdone=1.5, uneven=1.5, worn=0.3,
        dropped=Dropped(0.2, 0.05, both=0.2),
    ),
    # And up to here from features of a listener that knew thirty sentences alone (`train_audio.PHASES`).
    Phase(
        900, 7, ("mixed", "brief"), (3, 5, 9, 13, 21), shift=5.0, overdone=1.5, uneven=1.5, worn=0.3,
        dropped=Dropped(0.2, 0.05, both=0.2),
    ),
    # And up to here from states that the model had not made itself.
    Phase(
        300, 7, ("mixed", "brief"), (3, 5, 9, 13, 21), shift=5.0, overdone=1.5, uneven=1.5, guided=0.5, worn=0.3,
        dropped=Dropped(0.2, 0.05, both=0.2),
    ),
    Phase(
        500, 7, ("mixed", "brief"), (3, 5, 9, 13, 21), shift=5.0, overdone=1.5, uneven=1.5, guided=0.5, guided_steps=2,
        worn=0.3, dropped=Dropped(0.2, 0.05, both=0.2),
    ),
    # And up to here without being asked what guidance makes of its passes, which loosened lips at audio scale 4.
    Phase(
        1200, 7, ("mixed", "brief"), (3, 5, 9, 13, 21), shift=5.0, overdone=1.5, uneven=1.5, guided=0.3, guided_steps=2,
        asked_guided=0.4, worn=0.3, dropped=Dropped(0.2, 0.05, both=0.2),
    ),
    # What guidance makes can only be the clip where those who do not hear know as much: in states without any errors.
    Phase(
        110, 7, ("mixed", "brief"), (3, 5, 9, 13, 21), shift=5.0, overdone=1.5, uneven=1.5, guided=0.3, guided_steps=2,
        settled=True, asked_guided=0.5, worn=0.3, dropped=Dropped(0.2, 0.05, both=0.2),
    ),
)  # fmt: skip
RESTARTS = {
    2600: 0.5, 4300: 0.25, 6600: 0.25, 7500: 0.4, 8500: 0.5, 10100: 0.5, 11700: 0.5, 12600: 0.4, 13400: 0.4, 14600: 0.2,
}  # fmt: skip


def train(seed: int, device: torch.device) -> TalkingModel:
    """Trains, or goes on training; returns the averaged model."""
    torch.manual_seed(seed)
    tokenizer = sentencepiece.SentencePieceProcessor(model_proto=prompts.tokenizer())
    model = TalkingModel(tokenizer.vocab_size()).to(device)
    run = Run("transformer", model, total_steps(PHASES), rate=0.01, warmup=40, averaging=0.98, restarts=RESTARTS)
    clips = {phase.shards: Clips(phase.shards) for phase in PHASES}
    statistics = latent_statistics()
    for step in run:
        phase = phase_at(step, PHASES)
        if not clips[phase.shards].clips or step % 50 == 0:
            clips[phase.shards].refresh()
        random = np.random.default_rng((seed, step))
        chosen = clips[phase.shards].choose(random, phase.batch)
        run.apply(**_step(run.model, tokenizer, chosen, phase, statistics, random, device))
    return run.averaged()


def _step(
    model: TalkingModel, tokenizer: sentencepiece.SentencePieceProcessor, clips: list[dict], phase: Phase,
    statistics: tuple[Tensor, Tensor], random: np.random.Generator, device: torch.device,
) -> dict[str, float]:  # fmt: skip
    """Gradients of a step are left in the model; returns its `loss`, and the means of those of mouths alone."""
    dropped = random.random()
    share = phase.dropped
    text_dropped, all_dropped = dropped < share.text, share.text <= dropped < share.text + share.both
    kind = kind_of(clips[0])
    text = DEFAULT_NEGATIVE_PROMPT if text_dropped or all_dropped else prompts.prompt(random, *kind)
    losses, mouths = [], {"mouth": [], "guided_mouth": []}
    with fast_numbers(device):
        words = Words(model, tokenizer, text)
        guides = _guides(model, tokenizer, prompts.prompt(random, *kind)) if phase.guided else {}
        no_words = Words(model, tokenizer, DEFAULT_NEGATIVE_PROMPT) if phase.asked_guided else None
        length = int(random.choice(phase.lengths))
        for clip in clips:
            asked_guided = no_words is not None and random.random() < phase.asked_guided
            silent = not asked_guided and (all_dropped or random.random() < share.audio)
            example = window_of(clip, length, phase.worn, statistics, random)
            noisy, sigma = _state(phase, guides, example, silent, asked_guided, random)
            velocity, wanted = words.velocity(noisy, sigma, example, silent), (noisy - example["clean"]) / sigma
            loss, mouth = _flow_loss(velocity, wanted, example["weights"])
            mouths["mouth"].append(mouth)
            if asked_guided:
                away = no_words.velocity(noisy, sigma, example, silent=True)
                velocity = states.random_guidance(random).combine({Pass.COND: velocity, Pass.UNCOND: away})
                guided_loss, mouth = _flow_loss(velocity, wanted, example["weights"])
                loss = (loss + guided_loss) / 2
                mouths["guided_mouth"].append(mouth)
            losses.append(loss)
        total = torch.stack(losses).mean()
    total.backward()
    return {"loss": total.item()} | {name: float(np.mean(values)) for name, values in mouths.items() if values}


def _state(
    phase: Phase, guides: dict[Pass, Words], example: dict, silent: bool, low_noise: bool, random: np.random.Generator
) -> tuple[Tensor, float]:
    """Noisy latents of a window, where noise or guidance brought them, and their noise level."""
    clean = example["clean"]
    shares = np.zeros(clean.shape[1]) if silent else _overdone(phase, clean.shape[1], random)
    sigma = random.uniform(*LOW_NOISE) if low_noise else states.noise_level(phase.shift, random)
    noise = torch.from_numpy(random.standard_normal(clean.shape, dtype=np.float32))
    if phase.settled and sigma <= LOW_NOISE[1]:
        shares = np.zeros(clean.shape[1])
    elif phase.guided and random.random() < phase.guided:
        return _guided(guides, example, sigma, noise, random, phase.guided_steps), sigma
    return states.overdone(clean, example["known"], sigma, noise, shares), sigma


@torch.no_grad()
def _guides(model: TalkingModel, tokenizer: sentencepiece.SentencePieceProcessor, prompt: str) -> dict[Pass, Words]:
    """What the passes of guidance are told, without gradients."""
    words = {hears: Words(model, tokenizer, prompt if hears else DEFAULT_NEGATIVE_PROMPT) for hears in (True, False)}
    return {pass_: words[pass_.uses_prompt] for pass_ in Pass}


@torch.no_grad()
def _guided(
    guides: dict[Pass, Words], example: dict, sigma: float, noise: Tensor, random: np.random.Generator, steps: int
) -> Tensor:
    """Where guidance leads in a window, see `states.guided`."""

    def predict(noisy: Tensor, sigma: float, pass_: Pass) -> Tensor:
        return guides[pass_].velocity(noisy, sigma, example, silent=not pass_.uses_audio)

    return states.guided(predict, example["clean"], example["known"], sigma, noise, random, steps)


def _overdone(phase: Phase, length: int, random: np.random.Generator) -> np.ndarray:
    """By what share of itself the motion of each latent frame seems larger than it is."""
    overdone = np.full(length, random.uniform(-phase.overdone, phase.overdone))
    if phase.uneven:  # phases without it draw as they always did
        overdone += random.uniform(-phase.uneven, phase.uneven, length)
    return overdone


def _flow_loss(velocity: Tensor, wanted: Tensor, weights: Tensor) -> tuple[Tensor, float]:
    """The error of a velocity, heavier at eyes and most at mouths (`weights`: `h w`); with it that of mouths alone."""
    weights = weights.to(velocity.device)
    error = (velocity - wanted.to(velocity.device)).square().mean(dim=0)  # t h w
    mouths = weights > EYE_WEIGHT
    mouth = (error * mouths).sum() / (mouths.sum() * len(error))
    return (error * weights).sum() / (weights.sum() * len(error)), mouth.item()
