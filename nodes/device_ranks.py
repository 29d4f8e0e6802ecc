"""Processes on several devices that are kept warm between runs of one model.

They live as long as ComfyUI keeps that model's loader: its button that frees models and node cache ends them too.
Between runs they hold no weights on the devices, only what CUDA takes for itself.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING

from ..pipeline.weights.handles import SharedTransformer, TransformerFiles
from .options import SamplerOptions

if TYPE_CHECKING:  # imports diffusers, which takes seconds
    from ..pipeline.parallel.ranks import Ranks

_WARM: weakref.WeakKeyDictionary[SharedTransformer, Ranks] = weakref.WeakKeyDictionary()


def warm_ranks(model: TransformerFiles, options: SamplerOptions) -> Ranks | None:
    """The processes of this model on the devices of the options; None where one device is enough.

    Raises:
        ConfigError: a device is named twice.
    """
    assert model.shared is not None, "handles share a network"
    ranks = _WARM.get(model.shared)
    if ranks is not None and (ranks.devices, ranks.split) != (options.devices, options.split):
        _WARM.pop(model.shared).close()
        ranks = None
    if ranks is None and len(options.devices) > 1:
        from ..pipeline.parallel.ranks import Ranks  # imports diffusers

        ranks = _WARM[model.shared] = Ranks(options.devices, options.split)
        weakref.finalize(model.shared, ranks.close)
    return ranks
