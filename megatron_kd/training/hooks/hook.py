"""Hooks: everything around the steps of a run, one class per concern, called by named events.

The loop takes steps and announces events. Metrics, progress, evaluation, checkpoints and additions of the user are
hooks, and no hook knows another. A hook whose work concerns others announces an event of its own: `Evaluation`
announces `after_evaluation`, `Saving` announces `after_save`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Concatenate, ParamSpec

from megatron_kd.config.problem import Problem, Setting

if TYPE_CHECKING:  # a recipe with a hook of its own imports this before the libraries are quiet
    from megatron_kd.training.resume import Resumption
    from megatron_kd.training.run_state import Run

Arguments = ParamSpec("Arguments")


class Hook:
    """Base class of hooks. Override the events that concern the hook; the others do nothing.

    Every rank calls the same hooks in the same order, so a hook may communicate. Work that a hook does on one rank
    only (`loop.run.layout.rank == 0`) delays the others, which wait for that rank in their next step. An exception in
    a hook ends the run.
    """

    def before_run(self, loop: Loop) -> None:
        """The run is built and resumed; its next step follows."""

    def before_step(self, loop: Loop) -> None:
        """Step `loop.run.step + 1` follows."""

    def after_step(self, loop: Loop, values: Mapping[str, float]) -> None:
        """Step `loop.run.step` is done; `values` are those of a "train" line of `metrics.jsonl`."""

    def after_evaluation(self, loop: Loop, values: Mapping[str, float]) -> None:
        """The weights after step `loop.run.step` were evaluated; `values` are those of a "validation" line."""

    def after_save(self, loop: Loop, checkpoint: Path) -> None:
        """`checkpoint` is complete. It may be of an earlier step, if saves run in the background."""

    def message(self, loop: Loop, text: str) -> None:
        """`text` is a line for the user."""

    def close(self, loop: Loop, error: BaseException | None) -> None:
        """The run ends, with `error` if there is one. The last hook is closed first."""


def hook_problems(hooks: object) -> Iterator[Problem]:
    """Everything that is passed as `hooks`, and is not a sequence of hooks."""
    if isinstance(hooks, str) or not isinstance(hooks, Sequence):
        yield Problem((Setting("hooks", repr(hooks)),), "must be a list of hooks", "pass hooks=[...]")
        return
    for index, hook in enumerate(hooks):
        setting, name = Setting(f"hooks[{index}]", repr(hook)), getattr(hook, "__name__", "")
        if isinstance(hook, type) and issubclass(hook, Hook):
            yield Problem((setting,), "is a class, where its instance is called", f"pass {name}(...), as in [{name}()]")
        elif not isinstance(hook, Hook):
            yield Problem((setting,), "is not a hook", "pass an instance of a class derived from megatron_kd.Hook")


@dataclass
class Loop:
    """A run under way, as its hooks see it.

    Attributes:
        run: its parts; `run.step` steps are done.
        resumption: where it continues from.
        hooks: in the order in which they are called.
        stopping: a rank was asked to stop, so this step is the last one; equal on every rank in each event.
        evaluation: the values of the last evaluation; empty before the first.
        owes_evaluation: an evaluation was due after this step, and was skipped because the run is stopping.
    """

    run: Run
    resumption: Resumption
    hooks: Sequence[Hook]
    stopping: bool = False
    evaluation: Mapping[str, float] = field(default_factory=dict)
    owes_evaluation: bool = False

    @property
    def steps_left(self) -> int:
        """How many steps the run still has to take."""
        left = self.run.derived.train_iters - self.run.step
        return 0 if self.stopped_early else max(left, 0)  # a resumed run may be past its end

    @property
    def stopped_early(self) -> bool:
        """Whether `validation.patience` has ended the run: its last validations were no better than the best one."""
        return self.run.best.outlasts(self.run.cfg.validation.patience)

    def is_last(self, step: int) -> bool:
        """Whether the run ends after `step` steps."""
        return step == (self.run.step if self.stopped_early else self.run.derived.train_iters)

    def is_due(self, interval: int) -> bool:
        """Whether an action with this `interval` in steps is due now; after the last step all are. 0 is never."""
        step = self.run.step
        return self.is_last(step) or (interval > 0 and step % interval == 0)

    def announce(
        self,
        event: Callable[Concatenate[Hook, Loop, Arguments], None],
        *args: Arguments.args,
        **kwargs: Arguments.kwargs,
    ) -> None:
        """Call an event of all hooks, in their order: `loop.announce(Hook.after_save, checkpoint)`."""
        for hook in self.hooks:
            getattr(hook, event.__name__)(self, *args, **kwargs)
