"""Older runs shuffled the text of all their epochs together, so their order depends on their length.

They keep that order. A change of length or batch that would give a remaining step other samples is refused.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from megatron_kd.checkpoints.saved_run import SavedRun
from megatron_kd.checkpoints.saved_state import TOGETHER
from megatron_kd.config.blend import SplitData, split_data
from megatron_kd.config.container import ConfigContainer
from megatron_kd.config.derived import data_parallel_size, global_batch_size
from megatron_kd.config.problem import Problem
from megatron_kd.data.tokens.blend_files import blend_weights, file_problems
from megatron_kd.data.tokens.token_files import count_tokens
from megatron_kd.errors import ConfigError

_SURPLUS = 1.005  # samples of a file in a blend, over its share: megatron-core's
_SEPARATE = 0.8  # of an epoch: with fewer samples in it, megatron-core shuffles the last one by itself


def order_problems(cfg: ConfigContainer, saved: SavedRun, world_size: int | None) -> Iterator[Problem]:
    """The problem of a length that would change the order of the samples which are left.

    Nothing is known, and none is found, while the length is in epochs or the batch follows from unknown ranks.
    """
    steps, data = cfg.train.train_iters, None if saved.data_order != TOGETHER else _training_text(cfg)
    if data is None or steps is None or (world_size is None and cfg.train.global_batch_size is None):
        return
    batch = global_batch_size(cfg, data_parallel_size(cfg, world_size or 1))
    was = saved.cfg.train
    began = _samples(saved, was.train_iters or 0, global_batch_size(saved.cfg, saved.state.layout.get("dp", 1)))
    now, S = _samples(saved, steps, batch), cfg.model.seq_length
    if steps > saved.state.step and _orders(data, began, S) != _orders(data, now, S):
        why = (
            f"would read other samples than the run began with ({was.train_iters} steps of {was.global_batch_size}): "
            "an older version began it, whose order depends on how many epochs a run has"
        )
        cure = f"set train.train_iters={was.train_iters} and train.global_batch_size={was.global_batch_size}, or "
        cure += f"continue from its weights, in a new logger.run_dir: checkpoint.pretrained_checkpoint={saved.folder}"
        yield Problem.of(cfg, "train.train_iters train.global_batch_size", why, cure)


def _samples(saved: SavedRun, steps: int, batch: int) -> int:
    """All training samples of a run that takes its remaining steps in batches of `batch`."""
    return saved.consumed_samples + max(steps - saved.state.step, 0) * batch


def _training_text(cfg: ConfigContainer) -> SplitData | None:
    """The tokenised text to train on; None where it is something else, or other checks refuse it."""
    if cfg.dataset.mock or cfg.dataset.chat:
        return None
    try:
        data = split_data(cfg.dataset, "train")
    except ConfigError:
        return None
    return None if data is None or any(file_problems(data, chat=False)) else data


def _orders(data: SplitData, samples: int, S: int) -> list[tuple[int, bool]]:
    """For each file, all that megatron-core's order depends on: its epochs, and whether the last is shuffled alone."""
    weights = blend_weights(data.blend)
    counts = [samples] if weights is None else [
        math.ceil(math.ceil(samples * weight / sum(weights)) * _SURPLUS) for weight in weights
    ]  # fmt: skip
    tokens = [count_tokens(prefix, data.part)[0] for prefix in data.blend.prefixes]
    return [_order(count, T, S) for count, T in zip(counts, tokens, strict=True)]


def _order(samples: int, T: int, S: int) -> tuple[int, bool]:
    """T tokens of an epoch, S of a sample."""
    epochs = -(-(samples * S + 1) // max(T, 1))
    if epochs == 1:
        return 1, False
    of_last = samples - ((epochs - 1) * T - 1) // S
    return epochs, of_last < int(_SEPARATE * ((T - 1) // S))
