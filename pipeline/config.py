"""Every choice of a run, as frozen dataclasses; their defaults are the widgets' defaults."""

from __future__ import annotations

from dataclasses import dataclass, field

from .choice import Choice
from .errors import ConfigError
from .shapes import VAE_STRIDE_TIME, nearest_num_frames

CARD_NUM_FRAMES = range(41, 242)  # what the model's card allows in one request
MOST_FRAMES = 360_000  # four hours
MOST_STEPS = 1000  # as many as the schedule was trained with
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
    """How much may be given up for speed: nothing, little, or what a few steps cost."""

    NONE = "none"
    REGULAR = "regular"
    HIGH = "high"


class Recipe(Choice):
    """How a long video is continued; the audio adapter was trained for one of them."""

    MULTITALK = "multitalk"
    INFINITETALK = "infinitetalk"


class WindowPlan(Choice):
    """How a request is cut into context windows."""

    EXACT = "exact"  # windows that cover the request, then trimmed to it
    PUBLISHED = "published"  # the published program's plan, with its mirrored end and lost frames; for comparison


@dataclass(frozen=True)
class SamplingConfig:
    """The noise schedule and its seed."""

    steps: int = 40
    shift: float | None = None  # None takes the resolution's: 7 at 480p, 11 at 720p
    seed: int = 42
    skip_tail: bool = False  # a schedule without the last evaluation next to zero noise, for few-step LoRAs

    def __post_init__(self) -> None:
        if not 1 <= self.steps <= MOST_STEPS:
            raise ConfigError(f"steps must be in 1..{MOST_STEPS}, got {self.steps}. 40 is the published number.")
        if self.shift is not None and not 0 < self.shift <= 100:
            raise ConfigError(f"shift must be above 0 and at most 100, got {self.shift}. 7 suits 480p, 11 suits 720p.")
        if not 0 <= self.seed < 2**64:
            raise ConfigError(f"seed must be in 0..2^64-1, got {self.seed}. Any number in it will do, such as 42.")

    def shift_for(self, resolution: Resolution) -> float:
        """The shift to use: the one given, or the resolution's own."""
        if self.shift is not None:
            return self.shift
        return 7.0 if resolution is Resolution.P480 else 11.0


@dataclass(frozen=True)
class GuidanceConfig:
    """Classifier-free guidance towards the prompt and towards the audio (MultiTalk, arXiv:2505.22647)."""

    text_scale: float = 5.0
    audio_scale: float = 4.0
    projected: bool = False  # adaptive projected guidance (APG, arXiv:2410.02416)
    momentum: float = -0.75
    norm_threshold: float = 55.0

    def __post_init__(self) -> None:
        for name in ("text_scale", "audio_scale"):
            if not 0 <= getattr(self, name) <= 100:
                said = name.replace("_", " ")  # what the nodes call text_cfg_scale, the command line --text-scale
                raise ConfigError(f"{said} must be in 0..100, got {getattr(self, name)}. 1 turns it off.")


@dataclass(frozen=True)
class WindowConfig:
    """How a long video is cut into context windows. Counted in video frames, 25 a second."""

    recipe: Recipe = Recipe.MULTITALK
    plan: WindowPlan = WindowPlan.EXACT
    num_frames: int | None = None  # None fits windows to the request: equal ones up to 97, or 81 for InfiniteTalk
    motion_frames: int | None = None  # handed on from the window before; None takes the recipe's 25 or 9
    max_frames: int = 1000  # where the published plan stops

    def __post_init__(self) -> None:
        for name in ("num_frames", "motion_frames"):
            value = getattr(self, name)
            if value is not None and (value < 1 or value % VAE_STRIDE_TIME != 1):
                nearest = nearest_num_frames(max(value, 1))
                said = "window_frames" if name == "num_frames" else name
                raise ConfigError(f"{said} must be 4n+1, got {value}. The nearest is {nearest}.")
        if self.num_frames is not None and self.overlap >= self.num_frames:
            raise ConfigError(
                f"A window of {self.num_frames} frames cannot start with {self.overlap} motion frames. "
                f"Make it longer or hand on fewer."
            )

    @property
    def overlap(self) -> int:
        """Frames that a later window shares with the one before."""
        if self.motion_frames is not None:
            return self.motion_frames
        return 25 if self.recipe is Recipe.MULTITALK else 9


@dataclass(frozen=True)
class GenerationConfig:
    """One request. The local engine and the remote service take the same."""

    num_frames: int = 145  # 0 takes the length from the audio
    resolution: Resolution = Resolution.P480
    acceleration: Acceleration = Acceleration.NONE
    allow_long: bool = False  # lengths outside the card's 41..241
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    guidance: GuidanceConfig = field(default_factory=GuidanceConfig)
    windows: WindowConfig = field(default_factory=WindowConfig)
    color_strength: float = 1.0  # how far the colours of several windows are moved to the reference image's
    deflicker: float = 0.0  # grey levels of 255: smaller changes from frame to frame are held back

    def __post_init__(self) -> None:
        if not 0 <= self.num_frames <= MOST_FRAMES:
            raise ConfigError(
                f"num_frames must be in 0..{MOST_FRAMES}, got {self.num_frames}. 0 takes the audio's length."
            )
        if self.num_frames and not self.allow_long and self.num_frames not in CARD_NUM_FRAMES:
            raise ConfigError(
                f"num_frames must be in {CARD_NUM_FRAMES[0]}..{CARD_NUM_FRAMES[-1]}, got {self.num_frames}. "
                f"Turn on long video (--long; on fal split at pauses) for other lengths."
            )
        if not 0 <= self.color_strength <= 1:
            raise ConfigError(f"color_strength must be in 0..1, got {self.color_strength}. 0 leaves the colours alone.")
        if not 0 <= self.deflicker <= 255:
            raise ConfigError(f"deflicker must be in 0..255 grey levels, got {self.deflicker}. 0 turns it off.")
