"""What is asked of fal: the endpoints as a table, a request's arguments, its price and its identity."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from ..config import CARD_NUM_FRAMES, GenerationConfig, Resolution
from ..errors import ConfigError
from ..shapes import FPS
from .media import Media

ENDPOINT_VARIABLE = "MULTITALK_FAL_ENDPOINT"
ENDPOINT_PATTERN = re.compile(r"[a-z0-9-]+(/[a-z0-9._-]+)+")
MAX_SEED = 2**31 - 1  # the card gives no range; every runner's random generators take this one
LONG_NUM_FRAMES = range(41, 722)  # InfiniteTalk's, and that of the text-to-speech endpoint since 2026


@dataclass(frozen=True)
class PriceRule:
    """What an endpoint's card said about money on the day `as_of`.

    Attributes:
        as_of: when the rule was read, ISO date.
        usd_per_s: dollars a second of video.
        surcharge: the factor on requests of more than `surcharge_above` frames; None knows no such step.
        doubled_at_720p: two third parties say that 720p counts double; the card does not.
    """

    as_of: str
    usd_per_s: float = 0.2
    surcharge: float = 1.25
    surcharge_above: int | None = 81
    doubled_at_720p: bool = True


@dataclass(frozen=True)
class PriceEstimate:
    """Dollars that a request will cost: as the card reads, and as its least favourable reading."""

    usd: float
    usd_at_most: float

    def __add__(self, other: PriceEstimate) -> PriceEstimate:
        return PriceEstimate(round(self.usd + other.usd, 4), round(self.usd_at_most + other.usd_at_most, 4))

    def __str__(self) -> str:
        """For the user: `about $1.45`."""
        doubt = f", or {dollars(self.usd_at_most)} if 720p counts double" if self.usd_at_most > self.usd else ""
        return f"about {dollars(self.usd)}{doubt}"


def dollars(usd: float) -> str:
    """`$1.45`, and `$0.328` where a third digit says something."""
    text = f"{usd:.3f}"
    return f"${text.removesuffix('0')}"


@dataclass(frozen=True)
class Endpoint:
    """A row of the table: one model of fal's, what it takes and what it costs.

    Attributes:
        files: fields that take the URL of an uploaded file.
        texts: further fields that take words.
        optional: those of both that may be left out.
        default_num_frames: the card's default.
        num_frames: the lengths that one request may have.
        default_seed: the card's default.
    """

    id: str
    price: PriceRule
    files: tuple[str, ...] = ("image_url", "audio_url")
    texts: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    default_num_frames: int = 145
    num_frames: range = CARD_NUM_FRAMES
    default_seed: int = 42


_CARD = PriceRule(as_of="2026-08-01")
_NO_STEP = PriceRule(as_of="2026-08-01", surcharge_above=None)

AI_AVATAR = Endpoint("fal-ai/ai-avatar", _CARD)
MULTI = Endpoint(
    "fal-ai/ai-avatar/multi",
    _CARD,
    files=("image_url", "first_audio_url", "second_audio_url"),
    optional=("second_audio_url",),
    default_num_frames=181,
    default_seed=81,
)
INFINITALK = Endpoint("fal-ai/infinitalk", _NO_STEP, num_frames=LONG_NUM_FRAMES)

ENDPOINTS = {
    endpoint.id: endpoint
    for endpoint in (
        AI_AVATAR,
        MULTI,
        INFINITALK,
        Endpoint(
            "fal-ai/ai-avatar/single-text",
            _CARD,
            files=("image_url",),
            texts=("text_input", "voice"),
            num_frames=LONG_NUM_FRAMES,
        ),
        Endpoint(
            "fal-ai/ai-avatar/multi-text",
            _CARD,
            files=("image_url",),
            texts=("first_text_input", "second_text_input", "voice1", "voice2"),
            optional=("voice1", "voice2"),
            default_num_frames=191,
            default_seed=81,
        ),
        Endpoint(
            "fal-ai/infinitalk/single-text",
            _NO_STEP,
            files=("image_url",),
            texts=("text_input", "voice"),
            num_frames=LONG_NUM_FRAMES,
        ),
        Endpoint("fal-ai/infinitalk/video-to-video", _CARD, files=("video_url", "audio_url")),
    )
}


def endpoint_named(name: str, environ: Mapping[str, str] = os.environ) -> Endpoint:
    """The row called `name`; the variable MULTITALK_FAL_ENDPOINT sends its requests elsewhere, should fal rename it."""
    override = environ.get(ENDPOINT_VARIABLE, "").strip()
    if not override:
        return ENDPOINTS[name]
    if not ENDPOINT_PATTERN.fullmatch(override):
        raise ConfigError(f"{ENDPOINT_VARIABLE} must read like fal-ai/ai-avatar, got {override[:80]!r}.")
    return ENDPOINTS.get(override) or replace(ENDPOINTS[name], id=override)


@dataclass(frozen=True)
class RemoteRequest:
    """One request, checked when it is made; what the endpoint cannot honour (steps, scales, windows) is not sent.

    Attributes:
        media: the encoded file of each of the endpoint's `files`.
        texts: the words of each of its `texts`.
    """

    endpoint: Endpoint
    prompt: str
    config: GenerationConfig
    media: Mapping[str, Media]
    texts: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        frames = self.endpoint.num_frames
        if not self.prompt.strip():
            raise ConfigError("The prompt is empty. Say what the person does: a woman speaks to the camera.")
        if self.config.num_frames not in frames:
            raise ConfigError(
                f"{self.endpoint.id} makes {frames[0]}..{frames[-1]} frames in one request, "
                f"got {self.config.num_frames}. Shorten it, or split long audio at pauses."
            )
        if not 0 <= self.config.seed <= MAX_SEED:
            raise ConfigError(f"fal takes a seed in 0..{MAX_SEED}, got {self.config.seed}.")
        self._check_fields()

    def _check_fields(self) -> None:
        fields, values = {*self.endpoint.files, *self.endpoint.texts}, {*self.media, *self.texts}
        missing = fields - values - set(self.endpoint.optional)
        if missing or values - fields:
            expected, received = ", ".join(sorted(fields)), ", ".join(sorted(values)) or "nothing"
            raise ConfigError(f"{self.endpoint.id} takes {expected}; got {received}.")

    @property
    def estimate(self) -> PriceEstimate:
        """What it will cost."""
        return estimate(self.endpoint.price, self.config.num_frames, self.config.resolution)

    def arguments(self, urls: Mapping[str, str]) -> dict[str, str | int]:
        """The body of the request; `urls` has the uploaded file of each of the media."""
        return {
            **urls,
            **self.texts,
            "prompt": self.prompt.strip(),
            "num_frames": self.config.num_frames,
            "resolution": self.config.resolution.value,
            "seed": self.config.seed,
            "acceleration": self.config.acceleration.value,
        }

    def job_key(self, key_fingerprint: str) -> str:
        """Equal for two requests that would buy the same video for the same account, in any process."""
        contents = self.arguments({name: media.sha256 for name, media in self.media.items()})
        identity = json.dumps([self.endpoint.id, contents, key_fingerprint], sort_keys=True)
        return hashlib.sha256(identity.encode()).hexdigest()


def estimate(price: PriceRule, num_frames: int, resolution: Resolution) -> PriceEstimate:
    """`usd = num_frames / 25 * usd_per_s`, times the surcharge of a long request."""
    usd = num_frames / FPS * price.usd_per_s
    if price.surcharge_above is not None and num_frames > price.surcharge_above:
        usd *= price.surcharge
    doubled = price.doubled_at_720p and resolution is Resolution.P720
    return PriceEstimate(round(usd, 4), round(2 * usd if doubled else usd, 4))
