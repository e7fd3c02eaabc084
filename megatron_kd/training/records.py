"""The values of a line of `metrics.jsonl`."""

from __future__ import annotations

from megatron_kd.config.measured import unmeasured
from megatron_kd.training.pace import Pace
from megatron_kd.training.run_state import ForwardRun, Run
from megatron_kd.training.step import StepReport


def step_record(run: ForwardRun, report: StepReport, pace: Pace) -> dict[str, float]:
    """Those of a step, with the pace since the last logged line."""
    return {
        **measured(run, report.means, training=True),
        "grad_norm": report.grad_norm,
        "lr": report.lr,
        "tokens": report.tokens,
        **pace.record(),
    }


def step_tokens(run: ForwardRun) -> int:
    """Tokens that a step reads, padding and masked ones included."""
    return run.derived.global_batch_size * run.cfg.model.seq_length


def consumed(run: Run) -> dict[str, int]:
    """Samples and tokens that the run has been trained on since its first step, in all attempts."""
    samples = run.consumed_samples
    return {"consumed_samples": samples, "consumed_tokens": samples * run.cfg.model.seq_length}


def measured(run: ForwardRun, values: dict[str, float], *, training: bool) -> dict[str, float]:
    """`values` without those that this run does not measure, which are 0 by construction, or cannot be compared by."""
    absent = unmeasured(run.cfg.models.kd, training=training)
    return {name: value for name, value in values.items() if not name.startswith(absent)}
