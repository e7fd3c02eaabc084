"""Imports of every rank of a multi-rank test, made once in the server that ranks are forked from."""

import gc
import warnings

warnings.simplefilter("ignore")  # what the libraries say about kernels this machine does not have

from megatron_kd.runtime import cpu_backend  # noqa: E402

cpu_backend.install()

import megatron.core.dist_checkpointing  # noqa: E402
import megatron.core.models.gpt  # noqa: E402
import megatron.core.optimizer  # noqa: E402
import megatron.core.pipeline_parallel  # noqa: E402, F401

import megatron_kd.runtime.modelopt  # noqa: E402
import megatron_kd.training.train  # noqa: E402, F401

# megatron-core collects garbage at each save: in a rank, not among all that was imported here (0.3 s each time).
gc.collect()
gc.freeze()
