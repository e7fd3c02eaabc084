"""`problems(cfg)`: everything about a configuration that cannot work, found before anything is started.

Each subject has a file. To add a check, write a generator of `Problem` there and give it a line in `CHECKS`: its group
says who runs it, and `needs` which facts it reads beside the configuration.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from enum import Enum, auto

from megatron_kd.checks.batch import batch_problems
from megatron_kd.checks.begun import resume_problems
from megatron_kd.checks.data_paths import data_problems, training_data_problems
from megatron_kd.checks.kd_losses import distillation_problems
from megatron_kd.checks.model_sizes import architecture_problems
from megatron_kd.checks.parallel_layout import layout_problems
from megatron_kd.checks.quantization import quantization_problems
from megatron_kd.checks.ranges import range_problems
from megatron_kd.checks.schedules import (
    length_problems,
    optimizer_problems,
    output_problems,
    schedule_problems,
)
from megatron_kd.checks.student_from_teacher import from_teacher_problems
from megatron_kd.checks.validations import best_problems
from megatron_kd.checks.vocabularies import vocabulary_problems
from megatron_kd.checks.weight_origins import weight_problems
from megatron_kd.config.container import ConfigContainer
from megatron_kd.config.problem import Problem
from megatron_kd.placement.registry import placement_problems


class Group(Enum):
    """Checks that are run together."""

    SIZES = auto()  # ranges, shapes, layouts, batches
    VOCABULARY = auto()  # again when the tokenizer has been loaded
    LOSSES = auto()
    PLACEMENT = auto()
    WEIGHTS = auto()  # reads what folders say about themselves
    DATA = auto()
    SCHEDULE = auto()  # again when a run in epochs has counted its data
    TRAINING = auto()  # everything else that only training needs


@dataclass(frozen=True)
class Check:
    """One check.

    Attributes:
        group: who runs it.
        find: a generator function of the configuration and, by keyword, of the facts that it needs.
        needs: names of those facts: `world_size`, `tokenizer_vocab_size`. One that is not known is None.
    """

    group: Group
    find: Callable[..., Iterator[Problem]]
    needs: tuple[str, ...] = ()


CHECKS = (
    Check(Group.SIZES, range_problems),
    Check(Group.SIZES, architecture_problems),
    Check(Group.SIZES, layout_problems),
    Check(Group.TRAINING, quantization_problems),
    Check(Group.TRAINING, length_problems),
    Check(Group.SIZES, batch_problems, needs=("world_size",)),
    Check(Group.LOSSES, distillation_problems),
    Check(Group.PLACEMENT, placement_problems, needs=("world_size",)),
    Check(Group.WEIGHTS, weight_problems),
    Check(Group.TRAINING, from_teacher_problems),
    Check(Group.VOCABULARY, vocabulary_problems, needs=("tokenizer_vocab_size",)),
    Check(Group.DATA, data_problems),
    Check(Group.TRAINING, training_data_problems),
    Check(Group.TRAINING, optimizer_problems),
    Check(Group.SCHEDULE, schedule_problems),
    Check(Group.TRAINING, best_problems),
    Check(Group.TRAINING, output_problems),
    Check(Group.TRAINING, resume_problems, needs=("world_size",)),
)

# The checks for a plan, which needs neither weights nor data, and for an evaluation, which does not train.
PLAN = frozenset({Group.SIZES, Group.VOCABULARY, Group.LOSSES})
EVALUATION = PLAN | {Group.PLACEMENT, Group.WEIGHTS, Group.DATA}


def problems(
    cfg: ConfigContainer,
    world_size: int | None = None,
    tokenizer_vocab_size: int | None = None,
    groups: Collection[Group] = frozenset(Group),
) -> list[Problem]:
    """Find every impossible value and every contradiction between values.

    Nothing is changed or started; only files that the configuration names are read from disk. Types are
    `resolve`'s business and are taken to be right.

    Args:
        cfg: the configuration.
        world_size: number of ranks; None leaves out what depends on it.
        tokenizer_vocab_size: ids of the tokenizer, where it has been loaded; None leaves out what depends on it.
        groups: of checks; all of them for a run that trains.

    Returns:
        the problems in a fixed order, none twice; empty if the configuration can run.
    """
    facts = {"world_size": world_size, "tokenizer_vocab_size": tokenizer_vocab_size}
    chosen = [check for check in CHECKS if check.group in groups]
    found = (problem for check in chosen for problem in check.find(cfg, **{name: facts[name] for name in check.needs}))
    return list(dict.fromkeys(found))
