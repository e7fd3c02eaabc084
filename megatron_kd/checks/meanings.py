"""Whether a field means in a configuration what it meant to a run that has begun.

Values are compared by what they mean: a size that follows from others, a seed that is another field's, a batch that
follows from the ranks, and inputs by what is in the files.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from megatron_kd.checkpoints.saved_run import SavedRun
from megatron_kd.checkpoints.saved_state import RunState
from megatron_kd.checks.digests import input_digest, input_fields
from megatron_kd.config.blend import Split, parse_split
from megatron_kd.config.container import ConfigContainer
from megatron_kd.config.derived import (
    data_parallel_size,
    data_seed,
    global_batch_size,
    model_parallel_size,
    teacher_dtype,
)
from megatron_kd.config.gpt_model import GPTModelProvider, meaning
from megatron_kd.config.measured import best_metric
from megatron_kd.config.model_parts import names
from megatron_kd.config.problem import value_of
from megatron_kd.config.values import show
from megatron_kd.data.preprocessing.records import text_of_tokens
from megatron_kd.runtime.files import sha256_of


def same(name: str, cfg: ConfigContainer, saved: SavedRun, world_size: int | None) -> bool:
    """Whether the field `name` means in `cfg` what it meant to the saved run, as far as is known."""
    if name in input_fields(cfg):
        return _same_input(name, cfg, saved)
    if name == "dataset.random_seed" and value_of(cfg, name) == value_of(saved.cfg, name):
        return True  # if it follows from `rng.seed`, that one is to be compared
    before, after = _meaning(name, saved.cfg), _meaning(name, cfg, world_size)
    if name == "model.vocab_size":
        before = before or saved.state.vocab_size
    unknown = (before is None or after is None) and name.endswith(("model.vocab_size", "teacher.vocab_size"))
    return unknown or after is _UNKNOWN or before == after


def _same_input(name: str, cfg: ConfigContainer, saved: SavedRun) -> bool:
    if cfg.dataset.text_path is not None and name in ("dataset.text_path", "dataset.data_path"):
        # The saved run has the files that its text was tokenised into, and the digest of the text.
        return name == "dataset.data_path" or _same_text(cfg.dataset.text_path, saved)
    before, after = value_of(saved.cfg, name), value_of(cfg, name)
    now = input_digest(name, after)
    if before is None or now is None:
        return bool(before == after)
    known = saved.state.inputs.get(name) or (input_digest(name, before) if before != after else now)
    return now == known


def _same_text(text: str, saved: SavedRun) -> bool:
    digest = input_digest("dataset.text_path", text)
    if digest is None:
        return True  # it is not there, which is reported elsewhere
    if (known := saved.state.inputs.get("dataset.text_path")) is not None:
        return digest == known
    return any(text_of_tokens(str(prefix)) == sha256_of(Path(text)) for prefix in saved.cfg.dataset.data_path or [])


def _meaning(name: str, cfg: ConfigContainer, world_size: int | None = None) -> Any:
    """The value of a field, or what it stands for; None where it has no effect."""
    if name == "train.global_batch_size" and cfg.train.global_batch_size is None:
        if world_size is None or world_size % model_parallel_size(cfg):
            return _UNKNOWN
        return global_batch_size(cfg, data_parallel_size(cfg, world_size))
    if name == "dataset.random_seed":
        return data_seed(cfg)
    if name in _MEANINGS:
        return _MEANINGS[name](cfg)
    *section, field = name.split(".")
    if section in (["model"], ["model", "teacher"]) and field in _OF_A_MODEL:
        model: GPTModelProvider = value_of(cfg, ".".join(section))
        return meaning(model, field)
    return value_of(cfg, name)


def shown(name: str, cfg: ConfigContainer, state: RunState | None, world_size: int | None = None) -> str:
    """The value as it was written; what it stands for where it was left to follow from others."""
    value = value_of(cfg, name)
    if value is None and name == "model.vocab_size" and state is not None:
        value = state.vocab_size
    return show(_meaning(name, cfg, world_size) if value is None else value)


def _parts(cfg: ConfigContainer) -> Any:
    """The documents that training and validation have, where one list of files is cut into splits."""
    split = parse_split(cfg.dataset.split)
    if not isinstance(split, Split) or (cfg.dataset.data_path is None and cfg.dataset.text_path is None):
        return None
    return [split.part(name) for name in ("train", "valid") if split.share(name)]


def _if(condition: Callable[[ConfigContainer], bool], *names: str) -> dict[str, Callable[[ConfigContainer], Any]]:
    """Fields that have an effect under a condition only."""

    def of(name: str) -> Callable[[ConfigContainer], Any]:
        return lambda cfg: value_of(cfg, name) if condition(cfg) else None

    return {name: of(name) for name in names}


_UNKNOWN = object()  # as long as the number of ranks is
_OF_A_MODEL = names(GPTModelProvider)
_MEANINGS: dict[str, Callable[[ConfigContainer], Any]] = {
    "dataset.split": _parts,
    "validation.best_metric": best_metric,
    "model.teacher_dtype": teacher_dtype,
    **_if(lambda cfg: cfg.tokenizer.tokenizer_type == "null", "tokenizer.vocab_size"),
    **_if(lambda cfg: value_of(cfg, "model.teacher.init") == "random", "model.teacher.init_method_std"),
    **_if(
        lambda cfg: cfg.optimizer.optimizer == "adam",
        "optimizer.adam_beta1", "optimizer.adam_beta2", "optimizer.adam_eps",
    ),
    **_if(lambda cfg: cfg.optimizer.optimizer == "sgd", "optimizer.sgd_momentum"),
    **_if(lambda cfg: cfg.scheduler.lr_warmup_iters is None, "scheduler.lr_warmup_fraction"),
    **_if(
        lambda cfg: cfg.scheduler.lr_decay_style == "WSD",
        "scheduler.lr_wsd_decay_style", "scheduler.lr_wsd_decay_iters",
    ),
}  # fmt: skip
