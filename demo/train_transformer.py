"""The third stage: the transformer, its audio adapter and the text encoder learn to continue a portrait as speech.

The objective is that of the published model: of `x = (1 - sigma) clean + sigma noise` the velocity that leads back to
the clean latents, `(x - clean) / sigma`, is asked. All clips of a step share one prompt, whose tokens are then embedded
once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import chain

import numpy as np
import sentencepiece
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import UMT5Config, UMT5EncoderModel

from pipeline.conditioning.context_frames import known_mask
from pipeline.conditioning.prompt import DEFAULT_NEGATIVE_PROMPT
from pipeline.conditioning.speakers import Place, speaker_masks, to_latent_masks
from pipeline.sampling.guidance import Pass
from pipeline.sampling.windows import CONTEXT
from pipeline.shapes import LatentSize, num_latent_frames, num_video_frames
from pipeline.transformer.model import MultiTalkTransformer
from pipeline.transformer.prepared import Constant

from . import prompts, states, train_audio
from .dataset import EYE_WEIGHT, KNOWN_FRAMES, shards
from .numbers import fast_numbers
from .run import RUN_FOLDER, Run, phase_at, total_steps

TEXT_WIDTH = 64
CONTINUED = 0.5
LOW_NOISE = (0.05, 0.8)  # noise levels at which lips are settled already, so that guidance has nothing to add
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
)  # fmt: skip
RESTARTS = {2600: 0.5, 4300: 0.25, 6600: 0.25, 7500: 0.4, 8500: 0.5, 10100: 0.5, 11700: 0.5, 12600: 0.4, 13400: 0.4}


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


class Clips:
    """The clips on disk, more of them whenever asked again."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names, self.known, self.clips = names, set(), []

    def refresh(self) -> None:
        """Reads shards that are new."""
        for path in chain.from_iterable(map(shards, self.names)):
            if path not in self.known:
                self.known.add(path)
                self.clips += torch.load(path)

    def choose(self, random: np.random.Generator, count: int) -> list[dict]:
        """Clips that one prompt fits: of one mood and one number of people."""
        kin = self.clips[random.integers(len(self.clips))]
        key = _kind(kin)
        fitting = [clip for clip in self.clips if _kind(clip) == key]
        return [fitting[index] for index in random.choice(len(fitting), min(count, len(fitting)), replace=False)]


def _kind(clip: dict) -> tuple[int, int, int]:
    return clip["smile"], clip["brows"], len(clip["features"])


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


def latent_statistics() -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the VAE's latents, `16 1 1 1` each, over the first shard; kept on disk."""
    path = RUN_FOLDER / "latent_statistics.pt"
    if not path.exists():
        every = torch.cat([clip["latents"].float().flatten(1) for clip in torch.load(shards("short")[0])], dim=1)
        torch.save(tuple(value[:, None, None, None] for value in (every.mean(dim=1), every.std(dim=1))), path)
    return torch.load(path)


def _step(
    model: TalkingModel, tokenizer: sentencepiece.SentencePieceProcessor, clips: list[dict], phase: Phase,
    statistics: tuple[Tensor, Tensor], random: np.random.Generator, device: torch.device,
) -> dict[str, float]:  # fmt: skip
    """Gradients of a step are left in the model; returns its `loss`, and the means of those of mouths alone."""
    dropped = random.random()
    share = phase.dropped
    text_dropped, all_dropped = dropped < share.text, share.text <= dropped < share.text + share.both
    kind = _kind(clips[0])
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
    if phase.guided and random.random() < phase.guided:
        return _guided(guides, example, sigma, noise, random, phase.guided_steps), sigma
    return states.overdone(clean, example["known"], sigma, noise, shares), sigma


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


@torch.no_grad()
def _guides(model: TalkingModel, tokenizer: sentencepiece.SentencePieceProcessor, prompt: str) -> dict[Pass, Words]:
    """What the passes of guidance are told, without gradients."""
    words = {hears: Words(model, tokenizer, prompt if hears else DEFAULT_NEGATIVE_PROMPT) for hears in (True, False)}
    return {pass_: words[pass_.hears_prompt] for pass_ in Pass}


@torch.no_grad()
def _guided(
    guides: dict[Pass, Words], example: dict, sigma: float, noise: Tensor, random: np.random.Generator, steps: int
) -> Tensor:
    """Where guidance leads in a window, see `states.guided`."""

    def predict(noisy: Tensor, sigma: float, pass_: Pass) -> Tensor:
        return guides[pass_].velocity(noisy, sigma, example, silent=not pass_.hears_audio)

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


def window_of(
    clip: dict, length: int, worn: float, statistics: tuple[Tensor, Tensor], random: np.random.Generator
) -> dict:
    """A window of a clip: what is known of it, what it hears, who is where.

    A window that continues another one knows frames that the model has drawn, with its errors, which stay at their
    place, and that have been coded once more. So the known frames of a continued clip are those after another coding,
    where the clip has them, and may be off by the same noise in all of them, of `worn` standard deviations at most;
    what follows them is the clip as it is. Errors are to be mended, not handed on.

    What the encoder makes of the grey frames after the known ones says nothing, so it is taken from a store of such
    tails instead of being encoded for every clip.
    """
    mean, std = statistics
    clean = ((clip["latents"].float() - mean) / std)[:, :length]
    length, frames = clean.shape[1], num_video_frames(clean.shape[1])
    known = 1
    if clip["late"] or random.random() < CONTINUED:
        most = num_latent_frames(KNOWN_FRAMES)
        known = most if length > 13 and random.random() < 0.7 else int(random.integers(2, min(most, length - 1) + 1))
        if worn:  # phases without it draw as they always did
            if "coded" in clip:
                clean[:, :known] = ((clip["coded"].float() - mean) / std)[:, :known]
            error = random.standard_normal(clean[:, :1].shape, dtype=np.float32)
            clean[:, :known] += random.uniform(0, worn) * torch.from_numpy(error)
    condition = torch.cat((clean[:, :known], _grey_tail(clean, known, statistics)), dim=1)
    mask = known_mask(num_video_frames(known), frames)
    condition = torch.cat((mask[..., None, None].expand(-1, -1, *clean.shape[2:]), condition))
    features = clip["features"].float()
    heard = (torch.arange(frames)[:, None] + CONTEXT).clamp(0, features.shape[1] - 1)
    return {
        "clean": clean, "known": known, "condition": condition, "audio": features[:, heard], "weights": clip["weights"],
        "image": clip["image"].float(),
        "masks": _masks(clean.shape[2] * 8, clean.shape[3] * 8) if len(features) > 1 else None,
    }  # fmt: skip


_tails: dict[str, Tensor] = {}


def _grey_tail(clean: Tensor, known: int, statistics: tuple[Tensor, Tensor]) -> Tensor:
    """The latents of grey frames after `known` latent frames, those of some other clip."""
    if not _tails:
        _tails.update(torch.load(RUN_FOLDER / "grey_tails.pt"))
    tails = _tails["tails"]  # clips 16 t h w, of whole windows with one known frame
    tail = (tails[torch.randint(len(tails), ()).item()] - statistics[0]) / statistics[1]
    count = clean.shape[1] - known
    columns = torch.arange(clean.shape[3]) % tail.shape[3]
    steps = torch.arange(1, 1 + count).clamp(max=tail.shape[1] - 1)
    return tail[:, steps][..., columns]


def _masks(height: int, width: int) -> Tensor:
    """Side by side, as when nobody says who is where."""
    masks = speaker_masks([Place(), Place()], (height, width), (height, width))
    return to_latent_masks(masks, LatentSize.of_video(1, height, width))
