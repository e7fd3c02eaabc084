"""Writing a model's weights as a checkpoint, with nothing to resume from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from megatron.core.dist_checkpointing.mapping import ShardedTensor

from megatron_kd.checkpoints.saved_state import RunState
from megatron_kd.checkpoints.shards import plan_shards
from megatron_kd.checkpoints.writing import save
from megatron_kd.config.document import write_yaml
from megatron_kd.config.gpt_model import GPTModelProvider
from megatron_kd.config.sections import TokenizerConfig
from megatron_kd.runtime.files import sync


def make_durable(folder: Path) -> None:
    """Wait until the files of a folder are on the disk."""
    for path in folder.iterdir():
        sync(path)
    sync(folder)


def save_weights(
    shards: Sequence[ShardedTensor],
    path: str | Path,
    *,
    model: GPTModelProvider,
    vocab_size: int,
    tokenizer: TokenizerConfig | None = None,
) -> Path:
    """Write a checkpoint that holds a model's weights and nothing to resume from. Every rank must call this.

    It is read by `load_weights`, `checkpoint.pretrained_checkpoint` and `model.teacher.checkpoint`, and its
    architecture by `contents.architecture_of`.

    Args:
        shards: this rank's part, as `models.weights.local_shards` gives it; in any dtype, which is kept.
        path: the folder to make.
        model: the architecture, which goes into the folder's `run_config.yaml`.
        vocab_size: the model's number of token ids, without padding.
        tokenizer: of the model, if it is known; goes into `run_config.yaml` too.

    Returns:
        `path`.

    Raises:
        InputError: there is something at `path` already.
    """
    state = {str(index): shard for index, shard in enumerate(shards)}
    config = weights_config(model, vocab_size, tokenizer)
    return save(Path(path), lambda folder: plan_shards(state, folder), config, RunState(0, vocab_size))


def weights_config(model: GPTModelProvider, vocab_size: int, tokenizer: TokenizerConfig | None = None) -> str:
    """The `run_config.yaml` of a checkpoint of weights alone: its model, and its tokenizer where that is known."""
    sections: dict[str, Any] = {"model": {**asdict(model), "vocab_size": vocab_size}}
    if tokenizer is not None:
        sections["tokenizer"] = asdict(tokenizer)
    return write_yaml(sections)
