"""The configuration of a run that has started: numbers where its author left what only the start can tell.

The number of ranks makes a batch of `train.global_batch_size=null`, the tokens of the data make iterations of
`train.num_epochs`, and a text file has become tokenised ones. This is what a run works with and what it saves, so that
its `run_config.yaml` is the same run whatever becomes of the text file, and on any number of ranks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from megatron_kd.checkpoints.saved_run import SavedRun
from megatron_kd.config.container import ConfigContainer
from megatron_kd.config.derived import data_parallel_size, global_batch_size, samples_of
from megatron_kd.config.problem import Problem
from megatron_kd.errors import ConfigError


def with_tokens_at(cfg: ConfigContainer, prefix: str) -> ConfigContainer:
    """`cfg` with the files that `dataset.text_path` was tokenised into in its place."""
    return replace(cfg, dataset=replace(cfg.dataset, text_path=None, data_path=[prefix]))


def with_run_length(
    cfg: ConfigContainer, world_size: int, count: Callable[[], int], begun: SavedRun | None = None
) -> ConfigContainer:
    """`cfg` with its batch and its length as numbers; `cfg` itself where they are.

    Args:
        cfg: a configuration without problems.
        world_size: number of ranks.
        count: tells the tokens of the training split, or its rows where it is conversations; called where the length
            is in epochs.
        begun: the run that this one continues. Epochs are of samples, so of these those count that it has read, in
            batches of whatever size.

    Raises:
        ConfigError: the epochs do not fill one global batch.
    """
    batch, steps = global_batch_size(cfg, data_parallel_size(cfg, world_size)), cfg.train.train_iters
    if cfg.train.num_epochs is not None:
        steps = _steps(cfg, cfg.train.num_epochs, count(), batch, begun)
    train = replace(cfg.train, global_batch_size=batch, train_iters=steps, num_epochs=None)
    return cfg if train == cfg.train else replace(cfg, train=train)


def _steps(cfg: ConfigContainer, epochs: float, size: int, batch: int, begun: SavedRun | None) -> int:
    length = cfg.model.seq_length
    if cfg.dataset.chat:
        samples, enough, unit = int(epochs * size), -(-batch // max(size, 1)), "sequences of conversations"
    else:
        samples = samples_of(epochs, size, length)
        enough, unit = -(-(batch * length + 1) // max(size, 1)), "tokens"
    if begun is not None:
        return begun.state.step + max(samples - begun.consumed_samples, 0) // batch
    steps = samples // batch
    if steps < 1:
        why = f"the training split has {size} {unit}, and one step takes {batch} samples of model.seq_length={length}"
        cure = f"set train.num_epochs={enough} or more, or lower the batch or the sequence length"
        raise ConfigError([Problem.of(cfg, "train.num_epochs", why, cure)])
    return steps
