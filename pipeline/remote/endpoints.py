"""The endpoints of fal as a table: each with its fields, its lengths and its price."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from ..config import CARD_NUM_FRAMES, Resolution
from ..errors import ConfigError
from ..shapes import FPS, nearest_num_frames
from .pricing import PriceEstimate, PriceRule, estimate

ENDPOINT_VARIABLE = "MULTITALK_FAL_ENDPOINT"
ENDPOINT_PATTERN = re.compile(r"[a-z0-9-]+(/[a-z0-9._-]+)+")
DEFAULT_SEED = 42  # of the cards


@dataclass(frozen=True)
class Endpoint:
    """A row of the table: one model of fal's.

    Attributes:
        price: the rule of its card.
        voices: fields that take the URL of a voice, in the order of the speakers; only the first is required.
        options: fields that take a choice of the request; see `request.OPTIONS`.
        num_frames: lengths of one request; None makes a video as long as its voice.
    """

    id: str
    price: PriceRule
    voices: tuple[str, ...] = ("audio_url",)
    options: tuple[str, ...] = ("prompt", "num_frames", "resolution", "seed", "acceleration")
    num_frames: range | None = CARD_NUM_FRAMES

    @property
    def inputs(self) -> str:
        """The names of what it takes, as the node has them."""
        voices = ["audio", "audio_2"][: len(self.voices)]
        return ", ".join(["image", *voices, *self.options])

    def duration_s(self, duration_s: float) -> float:
        """Length of the video that one request makes for `duration_s` seconds of speech: not shorter, 4n+1 frames."""
        if self.num_frames is None:
            return duration_s
        num_frames = nearest_num_frames(max(math.ceil(duration_s * FPS - 1e-6), 1))
        return max(num_frames, self.num_frames[0]) / FPS

    def estimate(self, duration_s: float, resolution: Resolution) -> PriceEstimate:
        """Price of a clip of `duration_s`; one that is too long for a request is made in several."""
        longest_s = math.inf if self.num_frames is None else self.num_frames[-1] / FPS
        num_full = max(0, math.ceil(duration_s / longest_s - 1e-9) - 1)
        full = [estimate(self.price, longest_s, resolution)] * num_full
        rest_s = self.duration_s(duration_s - (num_full * longest_s if num_full else 0))
        return sum(full, estimate(self.price, rest_s, resolution))


_CARD = PriceRule("2026-08-01")
_WITHOUT_STEP = PriceRule("2026-08-01", surcharge_above=None)

AI_AVATAR = Endpoint("fal-ai/ai-avatar", _CARD)
MULTI = Endpoint("fal-ai/ai-avatar/multi", _CARD, voices=("first_audio_url", "second_audio_url"))
INFINITALK = Endpoint("fal-ai/infinitalk", _WITHOUT_STEP, num_frames=range(41, 722))
FLASHTALK = Endpoint(
    "fal-ai/flashtalk",
    PriceRule("2026-11", usd_per_s=0.02, surcharge_above=None, doubled_at_720p=False),
    options=("seed",),
    num_frames=None,
)

ENDPOINTS = {endpoint.id: endpoint for endpoint in (AI_AVATAR, MULTI, INFINITALK, FLASHTALK)}
# What can be collected: bought elsewhere, from a text or for a video.
COLLECTABLE = (
    *ENDPOINTS,
    "fal-ai/ai-avatar/single-text",
    "fal-ai/ai-avatar/multi-text",
    "fal-ai/infinitalk/single-text",
    "fal-ai/infinitalk/video-to-video",
)
LENGTHS = range(
    min(endpoint.num_frames[0] for endpoint in ENDPOINTS.values() if endpoint.num_frames),
    1 + max(endpoint.num_frames[-1] for endpoint in ENDPOINTS.values() if endpoint.num_frames),
)


def find_endpoint(name: str, environ: Mapping[str, str] = os.environ) -> Endpoint:
    """The row called `name`; the variable MULTITALK_FAL_ENDPOINT sends its requests elsewhere, should fal rename it.

    Raises:
        ConfigError: there is none, or the variable names none.
    """
    if name not in ENDPOINTS:
        raise ConfigError(f"{name!r} is no endpoint that videos are bought from. Take one of: {', '.join(ENDPOINTS)}.")
    override = environ.get(ENDPOINT_VARIABLE, "").strip()
    if not override:
        return ENDPOINTS[name]
    if not ENDPOINT_PATTERN.fullmatch(override):
        raise ConfigError(f"{ENDPOINT_VARIABLE} must read like fal-ai/ai-avatar, got {override[:80]!r}.")
    return ENDPOINTS.get(override) or replace(ENDPOINTS[name], id=override)


def alternatives(endpoint: Endpoint, num_voices: int, duration_s: float, resolution: Resolution) -> str:
    """For the user: the price of a clip of `duration_s` at every other endpoint that takes so many voices."""
    others = [row for row in ENDPOINTS.values() if row.id != endpoint.id and len(row.voices) >= num_voices]
    return ", ".join(f"{row.id} {row.estimate(duration_s, resolution)}" for row in others)
