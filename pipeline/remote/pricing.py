"""Prices of fal: the rule of an endpoint's card, and what a clip costs by it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..config import Resolution
from ..shapes import FPS


@dataclass(frozen=True)
class PriceRule:
    """The words of an endpoint's card about money on the day `as_of`.

    Attributes:
        as_of: ISO date or month when the rule was read.
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


FREE = PriceEstimate(0, 0)


def dollars(usd: float) -> str:
    """`$1.45`, and `$0.328` where a third digit says something."""
    text = f"{usd:.3f}"
    return f"${text.removesuffix('0')}"


def estimate(price: PriceRule, duration_s: float, resolution: Resolution) -> PriceEstimate:
    """`usd = duration_s * usd_per_s` of one request, times the surcharge of a long one."""
    usd = duration_s * price.usd_per_s
    if price.surcharge_above is not None and math.ceil(duration_s * FPS - 1e-6) > price.surcharge_above:
        usd *= price.surcharge
    is_doubled = price.doubled_at_720p and resolution is Resolution.P720
    return PriceEstimate(round(usd, 4), round(2 * usd if is_doubled else usd, 4))
