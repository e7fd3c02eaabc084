"""ModelOpt, imported as on a machine that has no transformers.

ModelOpt looks for transformers, and brings its trainer with all that the trainer knows where it finds it: datasets,
pyarrow, pandas, and accelerate, peft and scikit-learn where they are installed. That is 90 to 150 MB and 2 seconds of
every rank, and nothing here uses it. Its plugins take a library that cannot be imported for one that is not installed.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def _not_installed(name: str) -> Iterator[None]:
    """Within the block, a library that nobody has imported yet cannot be."""
    if name in sys.modules:  # it has cost what it costs
        yield
        return
    sys.modules[name] = None  # type: ignore[assignment]  # what the import system documents for it
    try:
        yield
    finally:
        del sys.modules[name]


with _not_installed("transformers"):
    import modelopt.torch.distill as mtd
    import modelopt.torch.distill.plugins.megatron as mtd_megatron
    import modelopt.torch.nas.plugins.megatron as nas_megatron
    import modelopt.torch.prune as mtp
    import modelopt.torch.quantization as mtq
    import modelopt.torch.quantization.nn as mtq_nn
    from modelopt.torch.nas.registry import DMRegistry
    from modelopt.torch.nas.traced_hp import TracedHp
    from modelopt.torch.opt.dynamic import DynamicModule
    from modelopt.torch.prune.plugins.mcore_minitron import get_mcore_minitron_config
    from modelopt.torch.quantization.model_calib import max_calibrate

__all__ = [
    "DMRegistry",
    "DynamicModule",
    "TracedHp",
    "get_mcore_minitron_config",
    "max_calibrate",
    "mtd",
    "mtd_megatron",
    "mtp",
    "mtq",
    "mtq_nn",
    "nas_megatron",
]
