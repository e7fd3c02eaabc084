"""The lines that a run begins with: what is trained, how, and where it continues from."""

from __future__ import annotations

from megatron_kd.config.container import ConfigContainer
from megatron_kd.config.derived import Derived
from megatron_kd.config.kd_config import why_materialised
from megatron_kd.data.tokens.shared_ids import ASSUMED, is_assumed
from megatron_kd.training.resume import Resumption
from megatron_kd.training.run_state import Run


def opening_lines(run: Run, resumption: Resumption) -> list[str]:
    """The checkpoints that were refused, then the run, what has changed, its losses and its end, a line each."""
    of_the_run = [*_of_the_run(run, resumption), *resumption.changes]
    return [*resumption.notes, *of_the_run, *_of_the_losses(run), *_of_the_patience(run)]


def _of_the_run(run: Run, resumption: Resumption) -> list[str]:
    layout, length = run.layout, run.derived.train_iters
    if resumption.checkpoint and run.step >= length:
        done = f"{run.step} steps are done, train.train_iters={length}, in {resumption.checkpoint}"
        return [f"finished: {done}; nothing is trained; raise train.train_iters or train.num_epochs to extend the run"]
    where = f"TP {layout.tp.size} x PP {layout.pp.size} x DP {layout.dp.size} on {layout.device.type}"
    begin = f"continues from {resumption.checkpoint}" if resumption.checkpoint else "starts"
    task = "training" if run.teacher is None else "distillation"
    lines = [f"{task} {begin} at step {run.step} of {length}, {where}"]
    if run.cfg.model.quantization is not None:
        lines.append(f"student: fake-quantised as {run.cfg.model.quantization}, except for embedding and head")
    return lines


def _of_the_losses(run: Run) -> list[str]:
    if (kd := run.cfg.models.kd) is None:
        return []
    lines = list[str]()
    if run.placement is not None:
        lines += run.placement.table.splitlines() if run.cfg.logger.verbose else []
        lines.append(f"teacher: {run.placement.why or run.placement.strategy.name}")
    reason = why_materialised(kd)
    lines.append(f"logit loss: materialised, since {reason}" if reason else "logit loss: fused, without logits")
    lines += _shared_ids(run.cfg, run.derived)
    if kd.loss_balancer == "modelopt":
        lines.append("warning: with loss_balancer=modelopt a step depends on how its batch is split")
    return lines


def _of_the_patience(run: Run) -> list[str]:
    patience, interval = run.cfg.validation.patience, run.cfg.validation.eval_interval
    times = -(-run.derived.train_iters // interval) if interval else 1
    if patience is None or patience < times - 1:  # the first is the best so far, and the last is at the end anyway
        return []
    return [f"warning: validation.patience={patience} cannot end this run early: it validates {times} times in all"]


def _shared_ids(cfg: ConfigContainer, values: Derived) -> list[str]:
    student, teacher = values.true_vocab_size, values.teacher_vocab_size
    lines = list[str]()
    if teacher is not None and student != teacher:
        both = f"logit loss: over the {min(student, teacher)} ids that both models have"
        lines.append(f"{both}, of the student's {student} and the teacher's {teacher}")
    named = cfg.tokenizer.teacher_tokenizer_model is not None or cfg.dataset.mock
    if is_assumed(cfg) or (lines and not named):
        lines.append(f"warning: {ASSUMED}")
    return lines
