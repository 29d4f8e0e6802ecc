"""Step caches, a file each, and the registry of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from ...choice import Choice
from ...config import Resolution
from .base import CacheSetup, StepCache
from .easycache import EasyCache
from .first_block import FirstBlockCache
from .magcache import MagCache
from .taylor import TaylorCache
from .teacache import TeaCache

if TYPE_CHECKING:
    from ...models.transformer.model import MultiTalkTransformer
    from ..presets import AccelerationOptions


class CacheKind(Choice):
    """The registry: a word for the users, and the class."""

    NONE = "none", None
    TEA = "TeaCache", TeaCache
    EASY = "EasyCache", EasyCache
    MAG = "MagCache", MagCache
    FIRST_BLOCK = "first block", FirstBlockCache
    TAYLOR = "Taylor forecast", TaylorCache

    _value_: str
    step_cache: type[StepCache] | None

    def __new__(cls, word: str, step_cache: type[StepCache] | None) -> CacheKind:
        """A member that equals its word."""
        member = str.__new__(cls, word)
        member._value_, member.step_cache = word, step_cache
        return member

    @property
    def default_threshold(self) -> float:
        """The recommendation of the cache's authors for Wan; 0 where it has none."""
        return 0.0 if self.step_cache is None else self.step_cache.default_threshold

    def num_tensors(self, num_passes: int) -> int:
        """Tensors of tokens x width that the cache keeps from step to step in a run of so many passes."""
        return 0 if self.step_cache is None else self.step_cache.num_tensors(num_passes)


def make_cache(
    options: AccelerationOptions, transformer: MultiTalkTransformer, timesteps: Tensor, resolution: Resolution
) -> StepCache | None:
    """A fresh cache for one window, None for none; `timesteps` are the `steps+1` of the run."""
    step_cache = options.cache.step_cache
    return step_cache and step_cache.from_setup(CacheSetup(options, transformer, timesteps, resolution))
