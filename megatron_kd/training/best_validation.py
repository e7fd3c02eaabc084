"""`Best`: what a run remembers of its validations, as a value that checkpoints hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from megatron_kd.config.measured import is_better


@dataclass(frozen=True)
class Measured:
    """The value of the metric after `step` steps."""

    step: int
    value: float


@dataclass(frozen=True)
class Best:
    """The validations so far, by one metric.

    Attributes:
        metric: that they are compared by.
        last: the last one.
        best: the first of those with the best value.
        saved: the same among those whose step has a checkpoint, which is never deleted.
        waited: how many validations followed the best one.
    """

    metric: str
    last: Measured | None = None
    best: Measured | None = None
    saved: Measured | None = None
    waited: int = 0

    def with_validation(self, step: int, value: float) -> Best:
        """This after a validation. A step counts once, also where a resumed run measures it again."""
        if self.last is not None and step <= self.last.step:
            return self
        last = Measured(step, value)
        if _is_better(self.metric, last, self.best):
            return replace(self, last=last, best=last, waited=0)
        return replace(self, last=last, waited=self.waited + 1)

    def with_checkpoint(self, step: int) -> Best:
        """This once there is a checkpoint of the run after `step` steps."""
        last = self.last
        if last is None or last.step != step or not _is_better(self.metric, last, self.saved):
            return self
        return replace(self, saved=last)

    def outlasts(self, patience: int | None) -> bool:
        """Whether at least `patience` validations were no better than the best one; never where that is None."""
        return patience is not None and self.waited >= patience

    def is_of(self, step: int) -> bool:
        """Whether the validation after `step` steps is the best one."""
        return self.best is not None and self.best.step == step


def resumed_best(saved: Mapping[str, Any] | None, metric: str, *, same_samples: bool = True) -> tuple[Best, str]:
    """The record that a resumed run continues, and a note where the one of its checkpoint does not go with it.

    Args:
        saved: the record of the checkpoint: `asdict` of a `Best`, the step and loss of earlier versions, or None.
        metric: that this run compares its validations by.
        same_samples: whether validations read as many samples as those before; otherwise they cannot be compared.

    Raises:
        KeyError, TypeError: `saved` is none of these.
    """
    if saved is None:
        return Best(metric), ""
    if saved.keys() == {"step", "loss"}:
        return Best(metric), _anew(f"loss, {saved['loss']:.6g} after step {saved['step']}", metric)
    measured = {name: Measured(**saved[name]) if saved[name] else None for name in ("last", "best", "saved")}
    found = Best(saved["metric"], **measured, waited=saved["waited"])
    if found.metric == metric and same_samples:
        return found, ""
    value = f", {found.best.value:.6g} after step {found.best.step}" if found.best else ""
    if found.metric == metric:
        return Best(metric), f"the best validation{value}, covered another number of samples; it starts again"
    return Best(metric), _anew(found.metric + value, metric)


def as_saved(best: Best) -> Mapping[str, Any] | None:
    """The form that a checkpoint holds; None before the first validation."""
    return None if best.last is None else asdict(best)


def _anew(before: str, metric: str) -> str:
    return f"the best validation was by {before}; by validation.best_metric={metric} it starts again"


def _is_better(metric: str, measured: Measured, than: Measured | None) -> bool:
    return measured.value == measured.value and (than is None or is_better(metric, measured.value, than.value))
