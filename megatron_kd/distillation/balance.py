"""How much each loss counts: the weights of the language-modelling, logit and intermediate losses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from megatron_kd.config.kd_config import ModelOptDistillConfig


class Losses(NamedTuple):
    """One value for each loss: means, sums or weights, as floats or scalar tensors."""

    lm: Any
    logits: Any
    intermediate: Any

    def weighted(self, weights: Losses) -> Losses:
        """Each loss times its weight."""
        return Losses(*(value * weight for value, weight in zip(self, weights, strict=True)))


@dataclass
class Balancer:
    """Gives the weights of a step's losses, before the step.

    `global`: from the means of the previous step, one value for all ranks and micro-batches, so that a step
    does not depend on how its batch is split; 1.0 on the first step. `static`: from the config. (`modelopt` weighs
    each micro-batch by its own losses, see `balanced`.)
    """

    config: ModelOptDistillConfig
    previous: Losses | None = None

    def weights(self) -> Losses:
        """The weights of the next step's losses."""
        kd = self.config
        if kd.loss_balancer == "static":
            scale = 1.0 if kd.skip_lm_loss else kd.kd_loss_scale
            weights = Losses(1.0, scale * kd.logits_loss_weight, scale * kd.intermediate_loss_weight)
        elif self.previous is None:
            weights = Losses(1.0, 1.0 if kd.skip_lm_loss else kd.kd_loss_scale, 1.0)
            weights = weights._replace(intermediate=weights.logits)
        else:
            weights = balanced(self.previous, kd)
        return weights._replace(lm=0.0) if kd.skip_lm_loss else weights

    def observe(self, means: Mapping[str, float]) -> None:
        """Record the losses of a step: token-weighted means, equal on all ranks."""
        self.previous = Losses(means["lm_loss"], means["logits_loss"], means["intermediate_loss"])

    def state_dict(self) -> dict[str, Any]:
        """The state that a resumed run needs."""
        return {"previous": list(self.previous) if self.previous else None}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a saved state."""
        self.previous = Losses(*state["previous"]) if state["previous"] else None


def balanced(losses: Losses, kd: ModelOptDistillConfig) -> Losses:
    """ModelOpt's dynamic weights as a function of the losses they balance.

    The intermediate loss is brought to the magnitude of the logit loss, then their sum to `kd_loss_scale`
    times that of the LM loss (nvidia-modelopt 0.43, `LogitsAndIntermediatesLossBalancer`). A loss that is
    zero is left at weight 1.
    """
    intermediate = _ratio(losses.logits, losses.intermediate)
    if kd.skip_lm_loss:
        return Losses(0.0, 1.0, intermediate)
    distillation = losses.logits + intermediate * losses.intermediate
    scale = _ratio(losses.lm, distillation, keep=losses.lm) * kd.kd_loss_scale
    return Losses(1.0, scale, scale * intermediate)


def _ratio(numerator: Any, denominator: Any, keep: Any = 1.0) -> Any:
    """numerator / denominator, or 1 where the denominator or `keep` is not positive; no host sync for tensors."""
    if isinstance(denominator, Tensor):
        usable = denominator > 0 if not isinstance(keep, Tensor) else (denominator > 0) & (keep > 0)
        return torch.where(usable, numerator / torch.where(usable, denominator, 1.0), 1.0)
    return numerator / denominator if denominator > 0 and keep > 0 else 1.0
