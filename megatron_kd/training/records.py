"""The values of a line of `metrics.jsonl`."""

from __future__ import annotations

from megatron_kd.training.run_state import ForwardRun
from megatron_kd.training.step import StepReport


def step_record(run: ForwardRun, report: StepReport, seconds: float) -> dict[str, float]:
    """Those of a step that took `seconds`."""
    return {
        **measured(run, report.means, training=True),
        "grad_norm": report.grad_norm,
        "lr": report.lr,
        "tokens": report.tokens,
        "tokens_per_second": report.tokens / seconds,
        "seconds": seconds,
    }


def measured(run: ForwardRun, values: dict[str, float], *, training: bool) -> dict[str, float]:
    """`values` without those that this run does not measure, which are 0 by construction."""
    absent: tuple[str, ...] = ("teacher_kl", "teacher_top1_agreement", "teacher_top5_agreement") if training else ()
    kd = run.cfg.models.kd
    if kd is None:
        absent = ("logits_loss", "intermediate_loss", "teacher_")
    else:
        absent += ("lm_loss",) if training and kd.skip_lm_loss else ()
        absent += () if kd.logit_kl_topk else ("teacher_topk_mass",)
        absent += () if kd.intermediate_layer_pairs else ("intermediate_loss",)
    return {name: value for name, value in values.items() if not name.startswith(absent)}
