"""ModelOpt, imported as if transformers were not installed.

Where transformers is installed, ModelOpt imports its trainer and everything that the trainer supports: datasets,
pyarrow, pandas, and accelerate, peft and scikit-learn if they are installed. That costs 90 to 150 MB and 2 seconds on
every rank, and nothing here uses it. ModelOpt's plugins treat a library whose import fails as not installed.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def _not_installed(name: str) -> Iterator[None]:
    """A context in which importing a library fails, unless it has been imported before."""
    if name in sys.modules:  # its cost is already paid
        yield
        return
    sys.modules[name] = None  # type: ignore[assignment]  # documented: makes `import name` raise ModuleNotFoundError
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
