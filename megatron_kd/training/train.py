"""The training loop, in the order of events."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path

from megatron_kd.config.container import ConfigContainer
from megatron_kd.config.derived import Derived, derived
from megatron_kd.config.kd_config import why_materialised
from megatron_kd.config.run_config import save_run_config
from megatron_kd.errors import InputError, LostRank, Preempted
from megatron_kd.huggingface.into_config import resolved
from megatron_kd.runtime.exit_code import record_exit_code
from megatron_kd.runtime.signals import StopSignals, listening
from megatron_kd.runtime.space import not_written
from megatron_kd.runtime.timeouts import set_group_timeouts
from megatron_kd.runtime.together import on_rank_0
from megatron_kd.runtime.watch import end_rank, watching
from megatron_kd.training.attempts import train_step
from megatron_kd.training.best import write_best
from megatron_kd.training.calibrate import calibrate
from megatron_kd.training.evaluate import evaluate, measured
from megatron_kd.training.metrics import MetricsWriter, has_record
from megatron_kd.training.prepare import check_files, checked_tokenizer, prepare, ranks_of
from megatron_kd.training.progress import Progress
from megatron_kd.training.resume import resume
from megatron_kd.training.run_data import RunData
from megatron_kd.training.run_state import Run, build_run
from megatron_kd.training.saving import alone_in, keep_best, poll_saving, save, saving_ends
from megatron_kd.training.step import StepReport


def distill(cfg: ConfigContainer) -> dict[str, float]:
    """Distil `cfg.model.teacher` into `cfg.model`. See `train`.

    Raises:
        InputError: the model has no teacher.
    """
    if cfg.distillation is None:
        raise InputError("model has no teacher: give `distill` a GPTDistillationProvider, or call `pretrain`")
    return train(cfg)


def pretrain(cfg: ConfigContainer) -> dict[str, float]:
    """Train `cfg.model` on labels. See `train`.

    Raises:
        InputError: the model has a teacher.
    """
    if cfg.distillation is not None:
        raise InputError("model has a teacher: call `distill`, or give `pretrain` a GPTModelProvider")
    return train(cfg)


def train(cfg: ConfigContainer) -> dict[str, float]:
    """Run the training that `cfg` describes, from its start or from where it was left.

    A model with a teacher is distilled, one without is trained on labels. Ranks are those of torchrun, or this
    process alone.

    Args:
        cfg: a configuration without `problems`.

    Returns:
        The last evaluation's values; empty where there was none.

    Raises:
        ConfigError: problems of Hugging Face folders, and those that show once the tokenizers are read; before ranks
            wait for each other.
        Preempted: a rank was sent SIGTERM, SIGUSR1 or SIGINT; after a step that all ranks have taken and saved.
        MegatronKDError: see the exit codes in `megatron_kd.errors`.
    """
    with listening() as stop:
        return _train(resolved(cfg), stop)


def _train(cfg: ConfigContainer, stop: StopSignals) -> dict[str, float]:
    tokenizer = checked_tokenizer(cfg)
    check_files(cfg)
    with ranks_of(cfg) as layout, alone_in(Path(cfg.logger.run_dir)):
        cfg = prepare(cfg, layout, tokenizer)
        values = derived(cfg, layout.world_size, tokenizer.vocab_size)
        on_rank_0(partial(_write_config, cfg, values))
        data = RunData(cfg, values, layout, tokenizer)
        run = build_run(cfg, values, layout)
        resumption = resume(run)
        on_rank_0(lambda: write_best(values.best_file, run.best))
        calibrate(run, data.training(0))
        set_group_timeouts(cfg.dist.step_timeout_s)
        main_rank = layout.rank == 0
        board = values.tensorboard_dir if cfg.logger.tensorboard else None
        with (
            Progress(cfg.logger.progress if main_rank else "off", values.train_iters, run.step) as progress,
            MetricsWriter(values.metrics_file, board, run.step, enabled=main_rank) as metrics,
        ):
            for line in (*resumption.notes, *_opening(run, resumption.checkpoint)):
                progress.say(line)
            run.stop = stop
            stop.defer()
            stacks = Path(cfg.logger.run_dir) / "stacks"
            with watching(run.doing, stacks, partial(_give_up, cfg)), saving_ends(run):
                return _loop(run, data, metrics, progress)


def _write_config(cfg: ConfigContainer, values: Derived) -> None:
    with not_written(values.run_config_file):
        save_run_config(cfg, values.run_config_file)


def _give_up(cfg: ConfigContainer, lost: LostRank) -> None:
    record_exit_code(Path(cfg.logger.run_dir), lost.exit_code)
    end_rank(lost)


def _loop(run: Run, data: RunData, metrics: MetricsWriter, progress: Progress) -> dict[str, float]:
    cfg, last_step = run.cfg, run.derived.train_iters
    batches = data.training(run.step)
    result = _evaluate(run, data, metrics, progress) if _owes_evaluation(run) else {}
    while run.step < last_step and not run.stopping:
        poll_saving(run)
        start = time.perf_counter()
        report = train_step(run, batches)
        values = _train_record(run, report, time.perf_counter() - start)
        logged = run.step % cfg.logger.log_interval == 0 or run.step == last_step
        progress.step(run.step, values, logged=logged)
        if logged:
            metrics.write(run.step, "train", values)
        if _evaluation_is_due(run):
            result = _evaluate(run, data, metrics, progress)
        if cfg.checkpoint.save and (run.stopping or _is_due(run.step, cfg.checkpoint.save_interval, last_step)):
            save(run, progress)
    if run.stopping and (run.step < last_step or (_evaluation_is_due(run) and not result)):
        then = "and saved; the same command goes on" if cfg.checkpoint.save else "and lost, since checkpoint.save=false"
        raise Preempted(f"asked to stop: {run.step} of {last_step} steps are done {then}")
    return result


def _evaluation_is_due(run: Run) -> bool:
    settings = run.cfg.validation
    return _is_due(run.step, settings.eval_interval, run.derived.train_iters) and settings.eval_iters > 0


def _owes_evaluation(run: Run) -> bool:
    """Whether the attempt before this one was asked to stop before it could evaluate. All ranks must call this."""
    if run.step == 0 or not _evaluation_is_due(run):
        return False
    return on_rank_0(lambda: "" if has_record(run.derived.metrics_file, run.step, "validation") else "owed") == "owed"


def _evaluate(run: Run, data: RunData, metrics: MetricsWriter, progress: Progress) -> dict[str, float]:
    """Evaluate and tell; nothing where the run is asked to stop before or meanwhile: there may not be the time."""
    run.doing.enter("evaluation")
    values = {} if run.stopping else evaluate(run, data.validation())
    if run.stopping:
        return {}
    result = measured(run, values, training=False)
    metrics.write(run.step, "validation", result)
    progress.evaluation(run.step, result)
    keep_best(run, result)
    return result


def _is_due(step: int, interval: int, last_step: int) -> bool:
    return step == last_step or (interval > 0 and step % interval == 0)


def _train_record(run: Run, report: StepReport, seconds: float) -> dict[str, float]:
    return {
        **measured(run, report.means, training=True),
        "grad_norm": report.grad_norm,
        "lr": report.lr,
        "tokens": report.tokens,
        "tokens_per_second": report.tokens / seconds,
        "seconds": seconds,
    }


def _opening(run: Run, resumed_from: object) -> list[str]:
    layout = run.layout
    where = f"TP {layout.tp.size} x PP {layout.pp.size} x DP {layout.dp.size} on {layout.device.type}"
    begin = f"continues from {resumed_from}" if resumed_from else "starts"
    task = "training" if run.teacher is None else "distillation"
    lines = [f"{task} {begin} at step {run.step} of {run.derived.train_iters}, {where}"]
    if run.cfg.model.quantization is not None:
        lines.append(f"student: fake-quantised as {run.cfg.model.quantization}, but for embedding and head")
    if (kd := run.cfg.models.kd) is not None:
        if run.placement is not None:
            lines += [*run.placement.lines, f"teacher: {run.placement.strategy}"]
        reason = why_materialised(kd)
        lines.append(f"logit loss: materialised, since {reason}" if reason else "logit loss: fused, without logits")
        lines += _shared_ids(run.cfg, run.derived)
        if kd.loss_balancer == "modelopt":
            lines.append("warning: with loss_balancer=modelopt a step depends on how its batch is split")
    return lines


def _shared_ids(cfg: ConfigContainer, values: Derived) -> list[str]:
    student, teacher = values.true_vocab_size, values.teacher_vocab_size
    if teacher is None or student == teacher:
        return []
    both = f"logit loss: over the {min(student, teacher)} ids that both models have"
    lines = [f"{both}, of the student's {student} and the teacher's {teacher}"]
    if cfg.tokenizer.teacher_tokenizer_model is None and not cfg.dataset.mock:
        lines.append(
            "warning: both models are taken to have one tokenizer; to have that checked, name the teacher's in "
            "tokenizer.teacher_tokenizer_model"
        )
    return lines
