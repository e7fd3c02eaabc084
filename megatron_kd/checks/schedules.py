"""Optimizer, schedule, data parallelism, and what the run writes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from megatron_kd.checks.new_folders import why_not_made
from megatron_kd.checks.one_of import keep_one
from megatron_kd.config.container import ConfigContainer
from megatron_kd.config.derived import lr_decay_iters, lr_warmup_iters, weight_decay_range
from megatron_kd.config.problem import Problem
from megatron_kd.huggingface.as_config import why_not_exportable


def optimizer_problems(cfg: ConfigContainer) -> Iterator[Problem]:
    """Learning rates and data-parallel options that contradict each other."""
    if cfg.optimizer.min_lr > cfg.optimizer.lr > 0:
        names = "optimizer.min_lr optimizer.lr"
        yield Problem.of(cfg, names, "must not exceed the learning rate", "lower optimizer.min_lr")
    if cfg.optimizer.optimizer == "sgd" and cfg.ddp.use_distributed_optimizer:
        names = "optimizer.optimizer ddp.use_distributed_optimizer"
        why = "megatron-core's distributed optimizer is for Adam alone"
        yield Problem.of(cfg, names, why, "set ddp.use_distributed_optimizer=false")
    needed = {
        "ddp.use_distributed_optimizer": cfg.ddp.use_distributed_optimizer,
        "ddp.overlap_grad_reduce": cfg.ddp.overlap_grad_reduce,
    }
    missing = [name for name, on in needed.items() if not on]
    if cfg.ddp.overlap_param_gather and missing:
        wanted = " ".join(f"{name}=true" for name in missing)
        why = "gathering parameters during the forward pass needs them"
        names = " ".join(["ddp.overlap_param_gather", *missing])
        yield Problem.of(cfg, names, why, f"set {wanted}, or ddp.overlap_param_gather=false")


def length_problems(cfg: ConfigContainer) -> Iterator[Problem]:
    """A run whose length is given twice or not at all, or in epochs of data that has none."""
    names = "train.train_iters train.num_epochs"
    if cfg.train.num_epochs is not None and cfg.dataset.mock:
        cure = "set train.num_epochs=null train.train_iters=N"
        yield Problem.of(cfg, "train.num_epochs dataset.mock", "mock data never ends, so it has no epochs", cure)
    elif cfg.train.train_iters is None and cfg.train.num_epochs is None:
        yield Problem.of(cfg, names, "the length of the run is not given", "set train.train_iters=N")
    elif cfg.train.train_iters is not None and cfg.train.num_epochs is not None:
        cure = keep_one(["train.train_iters=null", "train.num_epochs=null"])
        yield Problem.of(cfg, names, "the length is given twice", cure)


def schedule_problems(cfg: ConfigContainer) -> Iterator[Problem]:
    """Phases of the schedule that do not fit into it, and weight-decay ramps that do not rise.

    How a schedule fits into a run given in epochs is known, and checked, when the run has counted its data.
    """
    scheduler, decay = cfg.scheduler, lr_decay_iters(cfg) or 0  # 0 fits everything
    decay_name = "train.train_iters" if scheduler.lr_decay_iters is None else "scheduler.lr_decay_iters"
    if scheduler.lr_warmup_iters is not None and scheduler.lr_warmup_iters >= decay > 0:
        yield Problem.of(
            cfg,
            f"scheduler.lr_warmup_iters {decay_name}",
            "the warm-up must end before the decay does",
            "lower scheduler.lr_warmup_iters, or set scheduler.lr_warmup_iters=null scheduler.lr_warmup_fraction=0.1",
        )
    if scheduler.lr_warmup_init > cfg.optimizer.lr > 0:
        names = "scheduler.lr_warmup_init optimizer.lr"
        yield Problem.of(cfg, names, "the warm-up rises to the learning rate", "lower scheduler.lr_warmup_init")
    yield from _wsd(cfg, decay, decay_name)
    yield from _weight_decay_ramp(cfg)


def _wsd(cfg: ConfigContainer, decay: int, decay_name: str) -> Iterator[Problem]:
    scheduler = cfg.scheduler
    if scheduler.lr_decay_style != "WSD":
        return
    if scheduler.lr_wsd_decay_iters is None:
        names = "scheduler.lr_decay_style scheduler.lr_wsd_decay_iters"
        why = "WSD must know how many steps its last phase has"
        yield Problem.of(cfg, names, why, "set scheduler.lr_wsd_decay_iters")
    elif (lr_warmup_iters(cfg) or 0) + scheduler.lr_wsd_decay_iters > decay > 0:
        warmup_name = "scheduler.lr_warmup_" + ("fraction" if scheduler.lr_warmup_iters is None else "iters")
        names = f"{warmup_name} scheduler.lr_wsd_decay_iters {decay_name}"
        why = "warm-up and last phase do not fit into the schedule"
        yield Problem.of(cfg, names, why, "lower one of the first two")


def _weight_decay_ramp(cfg: ConfigContainer) -> Iterator[Problem]:
    start, end = weight_decay_range(cfg)
    names = "scheduler.start_weight_decay scheduler.end_weight_decay optimizer.weight_decay"
    if end < start:
        yield Problem.of(cfg, names, f"weight decay cannot fall, and goes from {start} to {end}", "raise the end")
    elif end > start and cfg.scheduler.weight_decay_incr_style == "constant":
        cure = "set scheduler.weight_decay_incr_style=linear (or cosine)"
        names += " scheduler.weight_decay_incr_style"
        yield Problem.of(cfg, names, f"goes from {start} to {end}, but is constant", cure)


def output_problems(cfg: ConfigContainer) -> Iterator[Problem]:
    """A run folder that cannot be written, or a step to resume from that is not there."""
    if why := why_not_made(cfg.logger.run_dir):
        yield Problem.of(cfg, "logger.run_dir", why, "name another folder")
    yield from _huggingface(cfg)
    resume = cfg.checkpoint.resume
    if isinstance(resume, int) and resume >= 0:
        step = Path(cfg.logger.run_dir) / "checkpoints" / f"iter_{resume:07d}"
        if not os.path.isdir(step):
            cure = "set checkpoint.resume=auto for the newest, or never to start from scratch"
            yield Problem.of(cfg, "checkpoint.resume", f"{step} is not there", cure)


def _huggingface(cfg: ConfigContainer) -> Iterator[Problem]:
    if not cfg.checkpoint.save_hf:
        return
    if not cfg.checkpoint.save:
        names = "checkpoint.save_hf checkpoint.save"
        yield Problem.of(cfg, names, "is made of a checkpoint", "set checkpoint.save=true")
    if reasons := why_not_exportable(cfg.model):
        why = f"transformers has no such model: {'; '.join(reasons)}"
        yield Problem.of(cfg, "checkpoint.save_hf", why, "set checkpoint.save_hf=false")
