"""Hooks: what happens around the steps of a run, one class for each concern, and the events that call them.

The loop takes steps and announces events. Metrics, progress, evaluation, checkpoints and whatever a user adds are
hooks; none of them knows another. A hook that does something others may want to know of announces an event of its own:
`Evaluation` announces `after_evaluation`, `Saving` announces `after_save`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Concatenate, ParamSpec

from megatron_kd.training.resume import Resumption
from megatron_kd.training.run_state import Run

Arguments = ParamSpec("Arguments")


class Hook:
    """Base class of hooks. Override the events that the hook is about; the others do nothing.

    Every rank has the same hooks and calls them in the same order, so that a hook may communicate. What one rank
    alone is to do (`loop.run.layout.rank == 0`), the others wait for in their next step at the latest. An exception
    of a hook ends the run.
    """

    def before_run(self, loop: Loop) -> None:
        """The run is built and resumed, and its first step is next."""

    def before_step(self, loop: Loop) -> None:
        """The step after `loop.run.step` is next."""

    def after_step(self, loop: Loop, values: Mapping[str, float]) -> None:
        """Step `loop.run.step` was taken; `values` are those of a "train" line of `metrics.jsonl`."""

    def after_evaluation(self, loop: Loop, values: Mapping[str, float]) -> None:
        """The weights after `loop.run.step` steps were evaluated; `values` as in a "validation" line."""

    def after_save(self, loop: Loop, checkpoint: Path) -> None:
        """`checkpoint` is complete. Where saves are in the background, steps were taken since it was begun."""

    def message(self, loop: Loop, text: str) -> None:
        """There is a line of text to show to the user."""

    def close(self, loop: Loop, error: BaseException | None) -> None:
        """The run ends, because of `error` if there is one. Called if `before_run` has returned, last hook first."""


@dataclass
class Loop:
    """A run under way, as its hooks see it.

    Attributes:
        run: its parts. `run.step` steps are done.
        resumption: where it continues from.
        hooks: in the order in which they are called.
        stopping: a rank was asked to stop, so this step is the last one; equal on every rank in each event.
        evaluation: values of the last evaluation; empty before the first.
        owes_evaluation: one was due after this step, but the run is stopping.
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
        return max(self.run.derived.train_iters - self.run.step, 0)  # a resumed run may be past its end

    def is_due(self, interval: int) -> bool:
        """Whether what happens every `interval` steps happens after this one. The last step has everything."""
        step = self.run.step
        return step == self.run.derived.train_iters or (interval > 0 and step % interval == 0)

    def announce(
        self,
        event: Callable[Concatenate[Hook, Loop, Arguments], None],
        *args: Arguments.args,
        **kwargs: Arguments.kwargs,
    ) -> None:
        """Call an event of all hooks, in their order: `loop.announce(Hook.after_save, checkpoint)`."""
        for hook in self.hooks:
            getattr(hook, event.__name__)(self, *args, **kwargs)
