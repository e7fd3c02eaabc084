"""Settings that act on validations: the best checkpoint and the early end of a run."""

from __future__ import annotations

from collections.abc import Iterator

from megatron_kd.config.container import ConfigContainer
from megatron_kd.config.measured import comparable
from megatron_kd.config.problem import Problem


def best_problems(cfg: ConfigContainer) -> Iterator[Problem]:
    """A metric that the run does not measure, and settings that act on validations or checkpoints where none are."""
    known, metric = comparable(cfg), "validation.best_metric"
    if cfg.validation.best_metric not in (None, *known):
        why = "this run's validations have no such metric that can be compared"
        yield Problem.of(cfg, metric, why, f"write one of {', '.join(known)}")
    given = {
        f"{metric}=null": cfg.validation.best_metric is not None,
        "validation.patience=null": cfg.validation.patience is not None,
        "checkpoint.save_best=false": cfg.checkpoint.save_best,
    }
    if cfg.validation.eval_iters == 0:
        for without in (setting for setting, on in given.items() if on):
            names = f"{without.partition('=')[0]} validation.eval_iters"
            cure = f"set validation.eval_iters=10, or {without}"
            yield Problem.of(cfg, names, "this run never validates", cure)
    if cfg.checkpoint.save_best and not cfg.checkpoint.save:
        cure = "set checkpoint.save=true, or checkpoint.save_best=false"
        yield Problem.of(cfg, "checkpoint.save_best checkpoint.save", "this run saves nothing", cure)
