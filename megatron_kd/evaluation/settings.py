"""The configuration of an evaluation: a model on disk, the values of its own run, and edits by files and command line.

The run's parallel layout is kept if the number of ranks allows it. If not, or if the command line names a layout, the
models start from one rank per copy, and `auto` chooses the teacher's placement.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from megatron_kd.checks import EVALUATION, Group, problems
from megatron_kd.config.container import ConfigContainer
from megatron_kd.config.derived import model_parallel_size
from megatron_kd.config.gpt_distillation import GPTDistillationProvider
from megatron_kd.config.gpt_model import GPTModelProvider
from megatron_kd.config.kd_config import ModelOptDistillConfig
from megatron_kd.config.model_parts import ONE_RANK
from megatron_kd.config.problem import Problem, Setting
from megatron_kd.config.run_config import RUN_CONFIG
from megatron_kd.config.sections import CheckpointConfig
from megatron_kd.errors import ConfigError
from megatron_kd.evaluation.saved_model import SavedModel
from megatron_kd.resolve.configuration import Merged, defaults_for, merge
from megatron_kd.resolve.flags import COMMAND_LINE

EVALUATION_ITSELF = "megatron-kd evaluate"  # the origin of values that the user has not set
# Of a run's own file, what says where its student's weights came from: here they come from the checkpoint.
_WITHOUT_WEIGHTS = ("model.hf_path=null", "model.init=null", "model.checkpoint=null")
_WITHOUT_TEACHER = "~model.teacher"  # it may be gone
_DATA = ("text_path", "data_path", "train_data_path", "valid_data_path", "test_data_path", "mock")


@dataclass(frozen=True)
class Evaluation:
    """An evaluation.

    Attributes:
        merged: the configuration, whose weights are the model's, and where its values were set.
        model: where it lies.
        own: whether model and teacher are those of the run that made the checkpoint, so that its losses mean the same
            and its projections and balancer are the checkpoint's.
    """

    merged: Merged
    model: SavedModel
    own: bool

    @property
    def cfg(self) -> ConfigContainer:
        """The configuration."""
        return self.merged.config


def evaluation_of(
    model: SavedModel,
    teacher: SavedModel | None,
    argv: Sequence[str] = (),
    *,
    with_teacher: bool = True,
    world_size: int = 1,
) -> Evaluation:
    """Put an evaluation together and check it.

    Args:
        model: what is evaluated.
        teacher: to compare with; None: the run's own, if the checkpoint comes from a distillation.
        argv: `--config-file FILE`, flags and overrides.
        with_teacher: false leaves the run's own out.
        world_size: number of ranks.

    Raises:
        ConfigError: everything that cannot be, at once.
        InputError: a checkpoint that does not say what it holds.
    """
    base, own = _base(model, teacher, with_teacher)
    edited = merge(base.config, argv).edited
    base = base.with_changes(_adapted(base.config, edited, world_size), EVALUATION_ITSELF)
    merged = merge(base.config, argv, base.origins)
    cfg = _with_micro_batches(_teacher_like_student(merged.config, edited), edited, world_size)
    merged = merged.with_changes(cfg, EVALUATION_ITSELF)
    merged = merged.with_problems([*_loss_edits(edited), *evaluation_problems(cfg, world_size)])
    merged.without_problems()
    return Evaluation(merged, model, own)


def evaluation_problems(cfg: ConfigContainer, world_size: int) -> Iterator[Problem]:
    """Problems of an evaluation. The length and the schedule of training have no effect on it."""
    if cfg.validation.eval_iters < 1:
        cure = "set it to 1 or more, in global batches"
        yield Problem.of(cfg, "validation.eval_iters", "there is nothing to evaluate", cure)
    yield from problems(cfg, world_size, groups=EVALUATION)


def _base(model: SavedModel, teacher: SavedModel | None, with_teacher: bool) -> tuple[Merged, bool]:
    """The configuration before files and command line, and whether model and teacher are its run's own."""
    wants_own = with_teacher and teacher is None
    if model.is_huggingface:
        nothing = merge(ConfigContainer(), [])
        base, own = nothing.with_changes(ConfigContainer(model=model.provider()), str(model.folder)), False
    else:
        base, own = _of_run(model.folder, wants_own), True
    cfg = base.config
    if teacher is not None:
        kd = ModelOptDistillConfig(intermediate_layer_pairs=[], loss_balancer="static")
        provider = teacher.provider(cfg.model.seq_length)
        joint = GPTDistillationProvider.from_student(cfg.model, teacher=provider, kd_config=kd)
        return base.with_changes(replace(cfg, model=joint), f"--teacher {teacher.folder}"), False
    if not wants_own and cfg.distillation is not None:
        return base.with_changes(replace(cfg, model=cfg.distillation.student), EVALUATION_ITSELF), False
    return base, own


def _of_run(folder: Path, with_teacher: bool) -> Merged:
    """The configuration that made a checkpoint, with the student's weights from there."""
    path = folder / RUN_CONFIG
    if not path.is_file():
        raise ConfigError([f"{folder}: has no {RUN_CONFIG}, which says what model it is; copy the folder again"])
    base, words = defaults_for(path), list(_WITHOUT_WEIGHTS)
    if base.distillation is not None and not with_teacher:
        words.append(_WITHOUT_TEACHER)
    run = merge(base, ["--config-file", str(path), *words])
    cfg = run.without_problems()
    origins = {field: EVALUATION_ITSELF if by == COMMAND_LINE.name else by for field, by in run.origins.items()}
    train = replace(cfg.train, train_iters=cfg.train.train_iters or 1, num_epochs=None)
    checkpoint = CheckpointConfig(save=False, pretrained_checkpoint=str(folder))
    run = replace(run, origins=origins)
    return run.with_changes(replace(cfg, train=train, checkpoint=checkpoint), EVALUATION_ITSELF)


def _adapted(base: ConfigContainer, edited: Collection[str], world_size: int) -> ConfigContainer:
    """`base` with nothing in the way of the data and the layout that are asked for."""
    if any(f"dataset.{name}" in edited for name in _DATA):
        empty: dict[str, Any] = {name: False if name == "mock" else None for name in _DATA}
        base = replace(base, dataset=replace(base.dataset, **empty, split="0,1,0"))  # all of it is validation data
    if any(f"model.{name}" in edited for name in ONE_RANK) or not _fits(base, world_size):
        base = replace(base, model=_on_one_rank(base))
    return base


def _fits(cfg: ConfigContainer, world_size: int) -> bool:
    misplaced = problems(cfg, world_size, groups={Group.PLACEMENT})
    return world_size % model_parallel_size(cfg) == 0 and not misplaced


def _on_one_rank(cfg: ConfigContainer) -> GPTModelProvider:
    """The models of `cfg`, each whole on every rank."""
    model = cfg.distillation
    if model is None:
        return replace(cfg.model, **ONE_RANK)
    teacher = replace(model.teacher, **ONE_RANK)
    anywhere: dict[str, Any] = {"teacher_device_strategy": "auto", "teacher_rank": 0, "teacher_micro_batch_size": None}
    return replace(model, **ONE_RANK, **anywhere, teacher=teacher)


def _teacher_like_student(cfg: ConfigContainer, edited: Collection[str]) -> ConfigContainer:
    """The student's layout and sequence length, where they are asked for, are the teacher's unless it has its own."""
    model = cfg.distillation
    if model is None:
        return cfg
    follows = [
        name
        for name in (*ONE_RANK, "seq_length")
        if f"model.{name}" in edited and f"model.teacher.{name}" not in edited
    ]
    teacher = replace(model.teacher, **{name: getattr(model, name) for name in follows})
    return replace(cfg, model=replace(model, teacher=teacher))


def _with_micro_batches(cfg: ConfigContainer, edited: Collection[str], world_size: int) -> ConfigContainer:
    """The run's micro-batch, or the largest below it that the ranks of this evaluation can share the batch in."""
    batch, most, copies = cfg.train.global_batch_size, cfg.train.micro_batch_size, model_parallel_size(cfg)
    if "train.micro_batch_size" in edited or batch is None or min(batch, copies) < 1 or world_size % copies:
        return cfg
    share, odd = divmod(batch, world_size // copies)
    sizes = [size for size in range(most, 0, -1) if not odd and share % size == 0]
    return replace(cfg, train=replace(cfg.train, micro_batch_size=sizes[0])) if sizes else cfg


def _loss_edits(edited: Collection[str]) -> list[Problem]:
    why, cure = "an evaluation takes the run's own losses", "leave it out"
    return [Problem((Setting(name),), why, cure) for name in sorted(edited) if name.startswith("model.kd_config.")]
