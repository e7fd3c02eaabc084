"""Numbers that are none, and batches that count nothing, in a chosen step of a run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist

from megatron_kd.config.container import ConfigContainer


@dataclass(frozen=True)
class Poison:
    """`times` NaNs that a rank meets from the forward of `step` on; `where` is "student", "teacher" or "gradient"."""

    step: int
    where: str
    rank: int = 1
    times: int = 1


@dataclass
class Met:
    """What a rank has met.

    Attributes:
        hits: NaNs that were put in.
        told: the message of the error that ended the run, if one did.
        unchanged: whether the weights were then those before the step.
    """

    hits: int = 0
    told: str = ""
    unchanged: bool = True


def weights(run: Any) -> dict[str, torch.Tensor]:
    """Copies of this rank's students' tensors."""
    states = [student.state_dict() for student in run.students]
    return {
        f"{i}.{k}": v.clone() for i, state in enumerate(states) for k, v in state.items() if isinstance(v, torch.Tensor)
    }


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Whether tensors are equal to the last bit, NaNs too."""
    return all(torch.equal(one[k].contiguous().view(torch.uint8), other[k].contiguous().view(torch.uint8)) for k in one)


@contextmanager
def poisoned(poisons: Sequence[Poison]) -> Iterator[Met]:
    """On a rank: put NaNs into the run that is made in the block. A `NumericalFault` is noted, and raised."""
    from megatron_kd.errors import NumericalFault
    from megatron_kd.training import attempts

    met, hits, take_step = Met(), [0] * len(poisons), attempts.take_step
    before: dict[int, Any] = {}  # the weights, by the step that was to be taken

    def take_poisoned(run: Any, batches: Any) -> Any:
        step, handle = run.step + 1, None
        before.setdefault(step, weights(run))
        for i, poison in enumerate(poisons):
            if (poison.step, poison.rank) == (step, dist.get_rank()) and hits[i] < poison.times:
                hits[i] += 1
                met.hits += 1
                handle = poison_once(run, poison.where)
        try:
            return take_step(run, batches)
        except NumericalFault as fault:
            met.told, met.unchanged = str(fault), same(before[step], weights(run))
            raise
        finally:
            if handle is not None:
                handle.remove()

    attempts.take_step = take_poisoned
    try:
        yield met
    finally:
        attempts.take_step = take_step


def poison_once(run: Any, where: str) -> Any:
    """A hook that puts a NaN into what the last layer puts out, or into the gradient of its weight."""
    model = run.students[0] if where != "teacher" else run.teacher.model
    if where == "gradient":
        weight = model.decoder.layers[-1].mlp.linear_fc2.weight
        return weight.register_hook(lambda grad: _nan_like(grad))
    return model.decoder.final_layernorm.register_forward_hook(lambda module, inputs, output: _nan_like(output))


def _nan_like(value: torch.Tensor) -> torch.Tensor:
    return value.masked_fill(torch.ones_like(value, dtype=torch.bool), float("nan"))


def poisoned_run(cfg: ConfigContainer, poisons: Sequence[Poison]) -> Met:
    """On a rank: run `cfg` with NaNs, to its end or to the error that they end it with."""
    from megatron_kd.errors import NumericalFault
    from megatron_kd.training.train import train

    with poisoned(poisons) as met:
        try:
            train(cfg)
        except NumericalFault as fault:
            assert fault.exit_code == 17
            met.told = str(fault)
        else:
            met.told = ""
    return met


def masked_run(cfg: ConfigContainer, step: int, *, masked: bool) -> dict[str, torch.Tensor]:
    """On a rank: run `cfg`; its `step` counts no token, or else leaves no gradient.

    Returns:
        The weights after that step.
    """
    from megatron_kd.training import attempts
    from megatron_kd.training import step as steps
    from megatron_kd.training.train import train

    take_step, update = attempts.take_step, steps.update
    after: dict[str, torch.Tensor] = {}

    def take(run: Any, batches: Any) -> Any:
        hit = run.step + 1 == step
        if hit and masked:
            batches = [replace(batch, loss_mask=torch.zeros_like(batch.loss_mask)) for batch in batches]
        steps.update = update_by_nothing(run) if hit and not masked else update
        report = take_step(run, batches)
        if hit:
            after.update(weights(run))
        return report

    def update_by_nothing(run: Any) -> Any:
        def zeroed(optimizer: Any) -> float:
            for chunk in run.chunks:
                chunk.zero_grad_buffer()
            return float(update(optimizer))

        return zeroed

    attempts.take_step = take
    try:
        train(cfg)
    finally:
        attempts.take_step, steps.update = take_step, update
    return after
