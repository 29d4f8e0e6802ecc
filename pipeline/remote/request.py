"""A request to fal: its files and choices as the endpoint's fields, its price and its identity."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ..config import GenerationConfig
from ..errors import ConfigError
from ..shapes import FPS
from .endpoints import Endpoint
from .media import Media
from .pricing import PriceEstimate, estimate

MAX_SEED = 2**31 - 1  # the cards give no range; every runner's random generators take this one
IMAGE_FIELD = "image_url"


@dataclass(frozen=True)
class RemoteRequest:
    """One request, checked when it is made; choices that the endpoint has no field for are not sent.

    Attributes:
        media: the encoded file of each field that takes one.
        duration_s: length of the video.
    """

    endpoint: Endpoint
    prompt: str
    config: GenerationConfig
    media: Mapping[str, Media]
    duration_s: float

    def __post_init__(self) -> None:
        if "prompt" in self.endpoint.options:
            check_prompt(self.prompt)
        check_length(self.num_frames, self.endpoint)
        if not 0 <= self.config.seed <= MAX_SEED:
            raise ConfigError(f"fal takes a seed in 0..{MAX_SEED}, got {self.config.seed}.")

    @property
    def num_frames(self) -> int:
        """Frames of the video, 25 a second."""
        return round(self.duration_s * FPS)

    @property
    def estimate(self) -> PriceEstimate:
        """Dollars that it will cost."""
        return estimate(self.endpoint.price, self.duration_s, self.config.resolution)

    def arguments(self, urls: Mapping[str, str]) -> dict[str, str | int]:
        """The body of the request; `urls` has the uploaded file of each of the media."""
        return {**urls, **{name: OPTIONS[name](self) for name in self.endpoint.options}}

    @property
    def content_key(self) -> str:
        """Equal for two requests that would buy the same video, in any process."""
        return self._identity()

    def job_key(self, key_fingerprint: str) -> str:
        """Equal for two requests that would buy the same video with the same key, in any process."""
        return self._identity(key_fingerprint)

    def _identity(self, *account: str) -> str:
        contents = self.arguments({name: media.sha256 for name, media in self.media.items()})
        identity = json.dumps([self.endpoint.id, contents, *account], sort_keys=True)
        return hashlib.sha256(identity.encode()).hexdigest()


# The fields of endpoints that take a choice. An endpoint with a new field adds a line here, and a row of the table.
OPTIONS: Mapping[str, Callable[[RemoteRequest], str | int]] = {
    "prompt": lambda request: request.prompt.strip(),
    "num_frames": lambda request: request.num_frames,
    "resolution": lambda request: request.config.resolution.value,
    "seed": lambda request: request.config.seed,
    "acceleration": lambda request: request.config.acceleration.value,
}


def check_length(num_frames: int, endpoint: Endpoint) -> None:
    """Raises ConfigError for a number of frames that one request of the endpoint cannot have."""
    lengths = endpoint.num_frames
    if lengths is not None and num_frames not in lengths:
        raise ConfigError(
            f"{endpoint.id} makes {lengths[0]}..{lengths[-1]} frames in one request, got {num_frames}. Shorten it, or "
            f"split long audio at pauses."
        )


def check_prompt(prompt: str) -> None:
    """Raises ConfigError for a prompt that fal cannot be sent."""
    if not prompt.strip():
        raise ConfigError("The prompt is empty. Say what the person does: a woman speaks to the camera.")
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(
            f"The prompt holds half a character ({error.object[error.start : error.start + 1]!a}) that no text can be "
            f"sent with. Type it again."
        ) from None
