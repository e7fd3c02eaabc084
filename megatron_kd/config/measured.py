"""Which metrics a run measures, and which of them its checkpoints can be compared by. Imports no torch."""

from __future__ import annotations

from megatron_kd.config.container import ConfigContainer
from megatron_kd.config.kd_config import ModelOptDistillConfig

# Raw metrics of a validation that say how good a student is; of these, higher is better.
_RAW = (
    "teacher_kl", "lm_loss", "perplexity", "logits_loss", "intermediate_loss", "teacher_top1_agreement",
    "teacher_top5_agreement",
)  # fmt: skip
_HIGHER_IS_BETTER = frozenset({"teacher_top1_agreement", "teacher_top5_agreement"})


def best_metric(cfg: ConfigContainer) -> str:
    """The metric that the best validation is the best of: as given, else `teacher_kl` with a teacher, or `lm_loss`."""
    given = cfg.validation.best_metric
    return given or ("lm_loss" if cfg.models.teacher is None else "teacher_kl")


def comparable(cfg: ConfigContainer) -> list[str]:
    """The metrics that `validation.best_metric` may name: those that the run measures, without its weighted total."""
    absent = unmeasured(cfg.models.kd, training=False)
    return [name for name in _RAW if not name.startswith(absent)]


def is_better(metric: str, value: float, than: float) -> bool:
    """Whether `value` of `metric` is better. NaN never is."""
    return value > than if metric in _HIGHER_IS_BETTER else value < than


def unmeasured(kd: ModelOptDistillConfig | None, *, training: bool) -> tuple[str, ...]:
    """Beginnings of the names of metrics that a run does not measure, or not in a way that two lines can be compared.

    Args:
        kd: the run's losses; None without a teacher.
        training: in training steps; false for validations.
    """
    if kd is None:
        return ("logits_loss", "intermediate_loss", "teacher_")
    absent = ["teacher_kl", "teacher_top1_agreement", "teacher_top5_agreement"] if training else []
    absent += ["lm_loss"] if training and kd.skip_lm_loss else []
    absent += ["loss"] if not training and weights_move(kd) else []
    absent += [] if kd.logit_kl_topk else ["teacher_topk_mass"]
    absent += [] if kd.intermediate_layer_pairs else ["intermediate_loss"]
    return tuple(absent)


def weights_move(kd: ModelOptDistillConfig) -> bool:
    """Whether the weights of the losses change from step to step, so that the total moves where no metric does."""
    several = bool(kd.intermediate_layer_pairs) or not kd.skip_lm_loss
    return several and kd.loss_balancer != "static"
