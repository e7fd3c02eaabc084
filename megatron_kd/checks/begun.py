"""A run that has begun and is started again: what has changed, what of it takes effect, and what is another run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from megatron_kd.checkpoints.contents import complete_checkpoints
from megatron_kd.checkpoints.saved_run import SavedRun, saved_run_of
from megatron_kd.checks.digests import input_fields
from megatron_kd.checks.meanings import same, shown
from megatron_kd.checks.text_order import order_problems
from megatron_kd.config.container import ConfigContainer
from megatron_kd.config.model_parts import FOLLOW_FROM, Architecture, names
from megatron_kd.config.on_resume import OnResume, on_resume
from megatron_kd.config.problem import Problem, Setting, value_of
from megatron_kd.config.schema import schema_of
from megatron_kd.config.values import dotted
from megatron_kd.data.preprocessing.records import text_of_tokens
from megatron_kd.errors import InputError
from megatron_kd.huggingface.architecture import read_architecture

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
        if kind is OnResume.FREE or _follows(name, cfg, saved, unread) or same(name, cfg, saved, world_size):
            continue
        before, after = shown(name, saved.cfg, saved.state), shown(name, cfg, None, world_size)
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
    if section not in ("model", "model.teacher") or field not in FOLLOW_FROM or value_of(cfg, name) is not None:
        return False
    return any(value_of(cfg, f"{section}.{of}") != value_of(saved.cfg, f"{section}.{of}") for of in FOLLOW_FROM[field])
