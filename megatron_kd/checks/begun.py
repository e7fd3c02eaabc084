"""A run that has begun and is started again: what has changed, what of it takes effect, and what is another run.

Values are compared by what they mean: a size that follows from others, a seed that is another field's, a batch that
follows from the ranks, and inputs by what is in the files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_kd.checkpoints.contents import complete_checkpoints
from megatron_kd.checkpoints.saved_run import SavedRun, saved_run_of
from megatron_kd.checkpoints.saved_state import RunState
from megatron_kd.checks.digests import input_digest, input_fields
from megatron_kd.checks.text_order import order_problems
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
from megatron_kd.config.model_parts import Architecture, names
from megatron_kd.config.on_resume import OnResume, on_resume
from megatron_kd.config.problem import Problem, Setting, value_of
from megatron_kd.config.schema import schema_of
from megatron_kd.config.values import dotted, show
from megatron_kd.data.preprocessing.records import text_of_tokens
from megatron_kd.errors import InputError
from megatron_kd.huggingface.architecture import read_architecture
from megatron_kd.runtime.files import sha256_of

_ANOTHER_RUN = (
    ", or start another run in a new logger.run_dir, with checkpoint.resume=never or, from these weights, "
    "checkpoint.pretrained_checkpoint={folder}"
)


@dataclass(frozen=True)
class Change:
    """A field that a run is resumed with another value of.

    Attributes:
        name: dotted.
        before, after: as YAML writes them; equal only where they name files whose content has changed.
        on_resume: what is done about it.
    """

    name: str
    before: str
    after: str
    on_resume: OnResume


def resume_problems(cfg: ConfigContainer, world_size: int | None) -> Iterator[Problem]:
    """Why the run in `logger.run_dir` cannot be continued with this configuration; nothing where none has begun."""
    checkpoints = Path(cfg.logger.run_dir) / "checkpoints"
    found = list(complete_checkpoints(checkpoints))
    saved = saved_run_of(checkpoints, cfg.checkpoint.resume)
    if saved is not None or cfg.checkpoint.resume == "never":
        yield from lost_saves(cfg, None if saved is None else saved.state.step, found)
    if saved is not None:
        yield from another_run(cfg, saved, world_size)


def another_run(cfg: ConfigContainer, saved: SavedRun, world_size: int | None) -> Iterator[Problem]:
    """A problem for each change that makes `cfg` another run than the saved one."""
    cure = _ANOTHER_RUN.format(folder=saved.folder)
    began = f"the run in {cfg.logger.run_dir} began"
    if (cfg.distillation is None) != (saved.cfg.distillation is None):
        how, back = ("with a", "one") if cfg.distillation is None else ("without a", "a recipe without one")
        yield Problem((Setting("model.teacher"),), f"{began} {how} teacher", f"give it {back}{cure}")
        return
    for change in changes(cfg, saved, world_size):
        if change.on_resume is OnResume.FIXED:
            why, back = _refusal(change, cfg, saved)
            yield Problem((Setting(change.name, change.after),), why, back + cure)
            cure = ""  # it is the same for all of them, so the first has it
    yield from order_problems(cfg, saved, world_size)


def changes(cfg: ConfigContainer, saved: SavedRun, world_size: int | None) -> Iterator[Change]:
    """The fields that mean something else than in the saved run, except for the free ones.

    Args:
        cfg: the configuration, with what its Hugging Face folders say filled in.
        saved: the run that it is to continue; of a distillation like `cfg`, or not.
        world_size: number of ranks; None leaves out what depends on it.
    """
    schema, unread = schema_of(cfg), _unread_models(cfg)
    for path in schema.leaves:
        kind, name = on_resume(path, schema.sections), dotted(path)
        if kind is OnResume.FREE or _follows(name, cfg, saved, unread) or _same(name, cfg, saved, world_size):
            continue
        before, after = _shown(name, saved.cfg, saved.state), _shown(name, cfg, None, world_size)
        if before != after or name in input_fields(cfg):  # else it means something else because of another field
            yield Change(name, before, after, kind)


def lost_saves(cfg: ConfigContainer, at: int | None, found: list[int]) -> Iterator[Problem]:
    """A checkpoint is never overwritten, so a run that would reach steps saved by another could not save its own.

    Args:
        cfg: the configuration.
        at: the step to continue from; None for a fresh start.
        found: steps of which there are checkpoints.
    """
    later = [step for step in found if at is None or step > at]
    if later and cfg.checkpoint.save:
        folder = Path(cfg.logger.run_dir) / "checkpoints"
        why = f"{folder} already has checkpoints of later steps, {later}, which are never overwritten"
        yield Problem.of(cfg, "checkpoint.resume", why, "move them away, or choose another logger.run_dir")


def _refusal(change: Change, cfg: ConfigContainer, saved: SavedRun) -> tuple[str, str]:
    """Why a change makes another run, and how to take it back."""
    name, began = change.name, f"the run in {cfg.logger.run_dir} began"
    if change.before == change.after:
        return f"the files at {change.after} have changed since the run began", "put them back"
    if name == "dataset.text_path":
        tokens = saved.cfg.dataset.data_path or []
        if "dataset.text_path" not in saved.state.inputs and not any(text_of_tokens(str(prefix)) for prefix in tokens):
            return f"{began} with data other than a text file", "set the data as the run's run_config.yaml has it"
        if [Path(str(prefix)).name for prefix in tokens] == [Path(change.after).stem]:
            return f"the content of {change.after} has changed since the run began", "put the file back"
        return f"{began} with another text file", "name that file"
    return f"{began} with {change.before}", f"set {name}={change.before}"


def _unread_models(cfg: ConfigContainer) -> list[str]:
    """The models whose Hugging Face folder cannot be read, which is reported elsewhere: what it says is unknown."""
    folders = {"model": cfg.model.hf_path}
    if cfg.models.teacher is not None:
        folders["model.teacher"] = cfg.models.teacher.hf_path
    return [name for name, folder in folders.items() if folder is not None and not _readable(folder)]


def _readable(folder: str) -> bool:
    try:
        read_architecture(folder)
    except InputError:
        return False
    return True


def _follows(name: str, cfg: ConfigContainer, saved: SavedRun, unread: list[str]) -> bool:
    """Whether the value of a field comes from a folder that cannot be read, or from sizes which are reported."""
    section, _, field = name.rpartition(".")
    if section in unread and field in names(Architecture):
        return True
    if unread and section == "tokenizer" and value_of(cfg, name) is None:
        return True
    if section not in ("model", "model.teacher") or field not in _SIZES_OF or value_of(cfg, name) is not None:
        return False
    return any(value_of(cfg, f"{section}.{of}") != value_of(saved.cfg, f"{section}.{of}") for of in _SIZES_OF[field])


def _same(name: str, cfg: ConfigContainer, saved: SavedRun, world_size: int | None) -> bool:
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


def _shown(name: str, cfg: ConfigContainer, state: RunState | None, world_size: int | None = None) -> str:
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
_SIZES_OF = {  # fields that follow, where they are not written out, from others
    "ffn_hidden_size": ("hidden_size",),
    "num_query_groups": ("num_attention_heads",),
    "kv_channels": ("hidden_size", "num_attention_heads"),
}
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
