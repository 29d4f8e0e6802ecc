"""The choices of a run as frozen dataclasses. What a person leaves open is None, and is filled from the model's row."""

from __future__ import annotations

from dataclasses import dataclass, fields
from fractions import Fraction
from numbers import Integral, Real

from .choice import Choice
from .errors import ConfigError
from .shapes import FPS, VAE_STRIDE_TIME, nearest_num_frames

CARD_NUM_FRAMES = range(41, 242)  # what the model's card allows in one request
MAX_FRAMES = 360_000  # four hours
MAX_STEPS = 1000  # as many as the schedule was trained with
FPS_RANGE = (1, 120)  # of files
KINDS = {"int": (Integral, "a whole number"), "float": (Real, "a number"), "bool": (bool, "true or false")}
LARGEST_480P = 640 * 960  # pixels, between the largest bucket of 480p and the smallest of 720p


class Resolution(Choice):
    """A table of aspect buckets: about 640x640 or about 960x960 pixels."""

    P480 = "480p"
    P720 = "720p"

    @classmethod
    def of(cls, height: int, width: int) -> Resolution:
        """The class of sizes that a picture belongs to, by its area."""
        return cls.P720 if height * width > LARGEST_480P else cls.P480


class Acceleration(Choice):
    """The level of acceleration: exact, a cache of blocks, or a cache and few steps."""

    NONE = "none"
    REGULAR = "regular"
    HIGH = "high"


class Fp8Products(Choice):
    """Products of float8 weights as they are stored, with activations rounded to float8."""

    AUTO = "auto"  # in regular and high
    ON = "on"
    OFF = "off"


class Recipe(Choice):
    """The model that the audio weights belong to; its row in `generation.recipes` says how it is run."""

    MULTITALK = "multitalk"
    INFINITETALK = "infinitetalk"
    FLASHTALK = "flashtalk"
    BUNDLED = "bundled"  # the small model of this repository


class SamplerKind(Choice):
    """The step from one noise level to the next."""

    EULER = "euler"  # along the velocity
    RENOISE = "renoise"  # to the clean estimate, and back with fresh noise: what FlashTalk was distilled to


class AudioFeatures(Choice):
    """The sound that the speech features of a window are encoded from."""

    WHOLE = "whole"  # all of it, in one go
    STREAM = "stream"  # its last eight seconds, for each window anew, as in FlashTalk's live mode


class ColorMatch(Choice):
    """The frames whose colours are compared with the reference image's."""

    STEADY = "steady"  # two seconds of them, and the seam between windows is faded
    FRAME = "frame"  # each by itself, as FlashTalk's program


class WindowPlan(Choice):
    """The division of a request into context windows."""

    EXACT = "exact"  # windows that cover the request, then trimmed to it
    PUBLISHED = "published"  # the published program's plan, with its mirrored end and lost frames; for comparison


@dataclass(frozen=True)
class GuidanceConfig:
    """Classifier-free guidance towards the prompt and towards the audio (MultiTalk, arXiv:2505.22647).

    Attributes:
        text_scale: 0..100; 1 turns it off.
        audio_scale: 0..100; 1 turns it off.
        projected: adaptive projected guidance (APG, arXiv:2410.02416), with its `momentum` and `norm_threshold`.
    """

    text_scale: float = 5.0
    audio_scale: float = 4.0
    projected: bool = False
    momentum: float = -0.75
    norm_threshold: float = 55.0


@dataclass(frozen=True)
class GenerationConfig:
    """The choices of one request, the same for the local engine and the remote service. None: the model's own.

    Attributes:
        num_frames: of the video at 25 a second; 0 is as long as the speech.
        resolution: the table of sizes, where `size` is None.
        size: height and width in pixels, multiples of 16.
        fps: frames a second of the finished file; the model itself makes 25.
        steps: denoising steps.
        shift: of the noise schedule; above 1 spends more steps at high noise.
        skip_tail: leaves out the evaluation next to zero noise, for few-step LoRAs.
        sampler: the step from one noise level to the next.
        text_scale: guidance towards the prompt; 1 turns it off.
        audio_scale: guidance towards the audio; 1 turns it off.
        projected: adaptive projected guidance.
        fp8_products: products of float8 weights as they are stored, on cards that can.
        features: the sound that a window's speech features are encoded from.
        window_frames: frames that are sampled together, 4n+1.
        motion_frames: frames that a window hands on to the next, 4n+1.
        max_frames: where the published plan stops.
        color_strength: 0..1, how far the colours of several windows are moved to the reference image's.
        color_match: the frames that are compared for it.
        deflicker: grey levels of 255; smaller changes from frame to frame are held back.
        first_look: a short video of the beginning, to judge a long run by.
    """

    num_frames: int = 0
    resolution: Resolution = Resolution.P480
    size: tuple[int, int] | None = None
    fps: float = float(FPS)
    seed: int = 42
    steps: int | None = None
    shift: float | None = None
    skip_tail: bool | None = None
    sampler: SamplerKind | None = None
    text_scale: float | None = None
    audio_scale: float | None = None
    projected: bool = False
    acceleration: Acceleration = Acceleration.NONE
    fp8_products: Fp8Products = Fp8Products.AUTO
    plan: WindowPlan = WindowPlan.EXACT
    features: AudioFeatures = AudioFeatures.WHOLE
    window_frames: int | None = None
    motion_frames: int | None = None
    max_frames: int = 1000
    color_strength: float | None = None
    color_match: ColorMatch | None = None
    deflicker: float | None = None
    first_look: bool = False

    def __post_init__(self) -> None:
        self._check_kinds()
        check_num_frames(self.num_frames)
        check_fps(self.fps)
        self._check_sampling()
        self._check_windows()
        if self.color_strength is not None and not 0 <= self.color_strength <= 1:
            raise ConfigError(f"color_strength must be in 0..1, got {self.color_strength}. 0 leaves the colours alone.")
        if self.deflicker is not None and not 0 <= self.deflicker <= 255:
            raise ConfigError(f"deflicker must be in 0..255 grey levels, got {self.deflicker}. 0 turns it off.")

    def _check_kinds(self) -> None:
        for field in fields(self):
            value, name = getattr(self, field.name), str(field.type).removesuffix(" | None")
            kind, words = KINDS.get(name, (object, ""))
            if not isinstance(value, kind) and not (value is None and field.default is None):
                raise ConfigError(f"{field.name} wants {words}, not {value!r}.")
        is_pair = (
            isinstance(self.size, tuple | list) and [isinstance(side, Integral) for side in self.size] == [True] * 2
        )
        if self.size is not None and not is_pair:
            raise ConfigError(f"size wants height and width in pixels, such as (480, 832), not {self.size!r}.")

    def _check_sampling(self) -> None:
        if self.steps is not None and not 1 <= self.steps <= MAX_STEPS:
            raise ConfigError(f"steps must be in 1..{MAX_STEPS}, got {self.steps}. 40 is the published number.")
        if self.shift is not None and not 0 < self.shift <= 100:
            raise ConfigError(f"shift must be above 0 and at most 100, got {self.shift}. 7 suits 480p, 11 suits 720p.")
        if not 0 <= self.seed < 2**64:
            raise ConfigError(f"seed must be in 0..2^64-1, got {self.seed}. Any number in it will do, such as 42.")
        for name in ("text_scale", "audio_scale"):
            scale = getattr(self, name)
            if scale is not None and not 0 <= scale <= 100:
                raise ConfigError(f"{name.replace('_', ' ')} must be in 0..100, got {scale}. 1 turns it off.")

    def _check_windows(self) -> None:
        for name in ("window_frames", "motion_frames"):
            value = getattr(self, name)
            if value is not None and (value < 1 or value % VAE_STRIDE_TIME != 1):
                raise ConfigError(
                    f"{name} must be 4n+1, got {value}. The nearest is {nearest_num_frames(max(value, 1))}."
                )


def check_num_frames(num_frames: int) -> None:
    """Raises ConfigError for a length that no video has."""
    if not 0 <= num_frames <= MAX_FRAMES:
        raise ConfigError(f"num_frames must be in 0..{MAX_FRAMES}, got {num_frames}. 0 is as long as the speech.")


def check_fps(fps: Fraction | float) -> Fraction | float:
    """`fps` itself.

    Raises:
        ConfigError: no file has such a rate.
    """
    if not FPS_RANGE[0] <= fps <= FPS_RANGE[1]:
        raise ConfigError(f"fps must be in {FPS_RANGE[0]}..{FPS_RANGE[1]}, got {float(fps):g}. 25 is the model's own.")
    return fps
