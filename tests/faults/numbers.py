"""NaNs, and batches in which no token counts, in a chosen step of a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from megatron_kd.config.container import ConfigContainer
from megatron_kd.errors import NumericalFault
from megatron_kd.training.hooks.hook import Hook, Loop
from tests.faults.batches import read_through
from tests.hooks import On


@dataclass(frozen=True)
class Poison:
    """NaNs on a rank in the first `times` attempts at `step`; `where` is "student", "teacher" or "gradient"."""

    step: int
    where: str
    rank: int = 1
    times: int = 1


class Poisoned(Hook):
    """Puts NaNs into a run.

    Attributes:
        hits: attempts of this rank that met one.
        told: the message of the `NumericalFault` that ended the run, if one did.
        unchanged: whether the weights were then those before the step.
    """

    def __init__(self, poisons: Sequence[Poison]) -> None:
        self.hits, self.told, self.unchanged = 0, "", True
        self._poisons = poisons
        self._before: dict[str, torch.Tensor] = {}

    def before_step(self, loop: Loop) -> None:
        self._before = weights(loop.run)
        here = (loop.run.step + 1, loop.run.layout.rank)
        for each in self._poisons:
            if (each.step, each.rank) == here:
                poison(loop.run, each.where, each.times, self._hit)

    def close(self, loop: Loop, error: BaseException | None) -> None:
        if isinstance(error, NumericalFault):
            self.told, self.unchanged = str(error), same(self._before, weights(loop.run))

    def _hit(self) -> None:
        self.hits += 1


def poison(run: Any, where: str, attempts: int = 1, hit: Callable[[], None] = lambda: None) -> None:
    """Put NaN into the output of the last layer, or the gradient of its weight, in the next attempts at a step.

    Args:
        run: of this rank.
        where: "student", "teacher" or "gradient".
        attempts: how many attempts meet it, in each of their micro-batches.
        hit: called at each attempt that does.
    """
    of_attempt = run.derived.num_microbatches
    left = [attempts * of_attempt]

    def nan(value: torch.Tensor) -> torch.Tensor:
        if left[0] == 0:
            return value
        if left[0] % of_attempt == 0:
            hit()
        left[0] -= 1
        return value.masked_fill(torch.ones_like(value, dtype=torch.bool), float("nan"))

    model = run.students[0] if where != "teacher" else run.teacher.model
    if where == "gradient":
        model.decoder.layers[-1].mlp.linear_fc2.weight.register_hook(nan)
    else:
        # First, so that the losses' own hooks see it.
        model.decoder.final_layernorm.register_forward_hook(lambda module, inputs, output: nan(output), prepend=True)


def weights(run: Any) -> dict[str, torch.Tensor]:
    """Copies of this rank's students' tensors."""
    states = [student.state_dict() for student in run.students]
    return {
        f"{i}.{k}": v.clone() for i, state in enumerate(states) for k, v in state.items() if isinstance(v, torch.Tensor)
    }


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Whether tensors are equal to the last bit, NaNs too."""
    return all(torch.equal(one[k].contiguous().view(torch.uint8), other[k].contiguous().view(torch.uint8)) for k in one)


def poisoned_run(cfg: ConfigContainer, poisons: Sequence[Poison]) -> tuple[int, str, bool]:
    """On a rank: run `cfg` with NaNs, to its end or to the error that they end it with.

    Returns:
        `hits`, `told` and `unchanged` of `Poisoned`.
    """
    from megatron_kd.training.train import train

    hook = Poisoned(poisons)
    try:
        train(cfg, [hook])
    except NumericalFault as fault:
        assert fault.exit_code == 17
        assert hook.told == str(fault)
    return hook.hits, hook.told, hook.unchanged


def masked_run(cfg: ConfigContainer, step: int, *, masked: bool) -> dict[str, torch.Tensor]:
    """On a rank: run `cfg`; its `step` counts no token, or else leaves no gradient.

    Returns:
        The weights after that step.
    """
    from megatron_kd.training.train import train

    after: dict[str, torch.Tensor] = {}

    def look(run: Any) -> None:
        if run.step == step:
            after.update(weights(run))

    def without_gradient(run: Any) -> None:
        if run.step + 1 == step:
            _leave_no_gradient(run)

    if masked:
        with read_through(masking(step)):
            train(cfg, [On(after_step=look)])
    else:
        train(cfg, [On(before_step=without_gradient, after_step=look)])
    return after


def masking(step: int) -> Callable[[int, Any], Any]:
    """For `read_through`: no token of `step` counts."""

    def mask(at: int, batch: Any) -> Any:
        return replace(batch, loss_mask=torch.zeros_like(batch.loss_mask)) if at == step else batch

    return mask


def _leave_no_gradient(run: Any) -> None:
    """In the next step: its gradients are zeroed once they are reduced."""
    config = run.chunks[0].config
    reduce = config.finalize_model_grads_func

    def reduce_to_nothing(*args: Any, **kwargs: Any) -> None:
        reduce(*args, **kwargs)
        for chunk in run.chunks:
            chunk.zero_grad_buffer()
        config.finalize_model_grads_func = reduce

    config.finalize_model_grads_func = reduce_to_nothing
