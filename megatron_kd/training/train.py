"""The training loop, in the order of events."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from types import TracebackType

from megatron_kd.config.container import ConfigContainer
from megatron_kd.errors import ConfigError, InputError, LostRank, Preempted
from megatron_kd.huggingface.into_config import with_huggingface
from megatron_kd.runtime.exit_code import record_exit_code
from megatron_kd.runtime.signals import StopSignals, listening
from megatron_kd.runtime.watch import end_rank, watching
from megatron_kd.training.hooks.hook import Hook, Loop, hook_problems
from megatron_kd.training.hooks.in_order import hooks_in_order
from megatron_kd.training.pace import Pace
from megatron_kd.training.records import step_record, step_tokens
from megatron_kd.training.starting import started_run
from megatron_kd.training.step import train_step


def distill(cfg: ConfigContainer, hooks: Sequence[Hook] = ()) -> dict[str, float]:
    """Distil `cfg.model.teacher` into `cfg.model`. See `train`.

    Raises:
        InputError: the model has no teacher.
    """
    if cfg.distillation is None:
        raise InputError("model has no teacher: give `distill` a GPTDistillationProvider, or call `pretrain`")
    return train(cfg, hooks)


def pretrain(cfg: ConfigContainer, hooks: Sequence[Hook] = ()) -> dict[str, float]:
    """Train `cfg.model` on labels. See `train`.

    Raises:
        InputError: the model has a teacher.
    """
    if cfg.distillation is not None:
        raise InputError("model has a teacher: call `distill`, or give `pretrain` a GPTModelProvider")
    return train(cfg, hooks)


def train(cfg: ConfigContainer, hooks: Sequence[Hook] = ()) -> dict[str, float]:
    """Run the training that `cfg` describes, from its start or from where it was left.

    A model with a teacher is distilled, one without is trained on labels. Ranks are those of torchrun, or this
    process alone.

    Args:
        cfg: a configuration without `problems`.
        hooks: called in addition to the built-in ones; every rank passes the same.

    Returns:
        The last evaluation's values; empty where there was none.

    Raises:
        ConfigError: invalid hooks, problems of Hugging Face folders, and those that show once the tokenizers are
            read; before ranks wait for each other.
        Preempted: a rank was sent SIGTERM, SIGUSR1 or SIGINT; after a step that all ranks have taken and saved.
        MegatronKDError: see the exit codes in `megatron_kd.errors`.
    """
    if wrong := list(hook_problems(hooks)):
        raise ConfigError(wrong)
    with listening() as stop, started_run(with_huggingface(cfg)) as (run, data, resumption):
        loop = Loop(run, resumption, hooks_in_order(data, stop, hooks))
        with _under_way(loop, stop):
            batches = data.training(run.consumed_samples)
            pace = Pace()
            while loop.steps_left and not loop.stopping:
                loop.announce(Hook.before_step)
                start = time.perf_counter()
                report = train_step(run, batches, stop)
                loop.stopping = report.stop_requested
                pace = pace.after_step(step_tokens(run), report.tokens, time.perf_counter() - start)
                loop.announce(Hook.after_step, step_record(run, report, pace))
                if loop.is_due(run.cfg.logger.log_interval):
                    pace = Pace()
            _raise_if_work_is_left(loop)
            return dict(loop.evaluation)


@contextmanager
def _under_way(loop: Loop, stop: StopSignals) -> Iterator[None]:
    """Watch the other ranks during the block, and call the first and the last event of the hooks.

    From here on a signal to stop is only noted: the ranks agree on their last step.
    """
    run = loop.run
    stop.defer()
    run.doing.enter("before the first step")
    run_dir = Path(run.cfg.logger.run_dir)
    with watching(run.doing, run_dir / "stacks", partial(_give_up, run_dir)), ExitStack() as opened:
        for hook in loop.hooks:
            hook.before_run(loop)
            opened.push(partial(_close, hook, loop))
        yield


def _close(hook: Hook, loop: Loop, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> bool:
    hook.close(loop, error)
    return False  # the error is raised all the same


def _give_up(run_dir: Path, lost: LostRank) -> None:
    record_exit_code(run_dir, lost.exit_code)
    end_rank(lost)


def _raise_if_work_is_left(loop: Loop) -> None:
    """A run that was asked to stop with nothing left to do is done.

    Raises:
        Preempted: steps are left, or the last evaluation.
    """
    if loop.stopping and (loop.steps_left or loop.owes_evaluation):
        saved = loop.run.cfg.checkpoint.save
        then = "and saved; the same command resumes the run" if saved else "and lost, since checkpoint.save=false"
        raise Preempted(f"asked to stop: {loop.run.step} of {loop.run.derived.train_iters} steps are done {then}")
