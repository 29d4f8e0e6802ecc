"""What this pack raises when a request cannot be served: one sentence for the person who made it."""

from __future__ import annotations


class MultiTalkError(ValueError):
    """A request that cannot be served; the message says what came, what was wanted and what to do."""


class ConfigError(MultiTalkError):
    """An option, or a combination of options, that cannot be run."""


class AudioError(MultiTalkError):
    """Audio that cannot be used."""


class ImageError(MultiTalkError):
    """An image or a mask that cannot be used."""


class WeightsError(MultiTalkError):
    """A weights file that is damaged, of another kind, or does not fit its companions."""


class NumericalError(MultiTalkError):
    """A run whose numbers went bad (NaN, infinity, black frames)."""


class RemoteError(MultiTalkError):
    """A request that the remote service refused, lost or did not finish, or a file from it that cannot be used."""
