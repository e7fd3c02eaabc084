"""DDP, optimizer and learning-rate schedule, all megatron-core's, from our config."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import torch
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
from megatron.core.optimizer import ChainedOptimizer, get_megatron_optimizer
from megatron.core.optimizer import OptimizerConfig as MegatronOptimizerConfig
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler
from megatron.core.transformer.module import Float16Module
from torch import nn

from megatron_kd.config.container import ConfigContainer
from megatron_kd.config.derived import Derived
from megatron_kd.models.gpt import DistillableGPTModel
from megatron_kd.runtime.layout import Layout
from megatron_kd.runtime.watch import Doing


def in_precision(student: DistillableGPTModel) -> nn.Module:
    """The student as its inputs and outputs need it for the precision it has. A teacher must be hidden from it."""
    config = student.config
    return Float16Module(config, student) if config.bf16 or config.fp16 else student


def wrap_for_training(
    modules: Sequence[nn.Module], cfg: ConfigContainer, layout: Layout, doing: Doing
) -> list[DistributedDataParallel]:
    """Wrap this rank's chunks of the student, in their precision, in data parallelism.

    A teacher must be hidden from it. `doing` is updated when a step starts to reduce its gradients.
    """

    def reduce_gradients(*args: Any, **kwargs: Any) -> None:
        doing.enter("reducing gradients")
        finalize_model_grads(*args, **kwargs)

    chunks = [_wrap(module, cfg, layout, first=index == 0) for index, module in enumerate(modules)]
    for config in (chunk.config for chunk in chunks):
        config.finalize_model_grads_func = reduce_gradients
        if cfg.ddp.overlap_grad_reduce:
            config.no_sync_func = _one_or_list([chunk.no_sync for chunk in chunks])
            if layout.pp.size > 1:
                config.grad_sync_func = _one_or_list([chunk.start_grad_sync for chunk in chunks])
    return chunks


def _wrap(module: Any, cfg: ConfigContainer, layout: Layout, *, first: bool) -> DistributedDataParallel:
    ddp_config = DistributedDataParallelConfig(
        use_distributed_optimizer=cfg.ddp.use_distributed_optimizer,
        grad_reduce_in_fp32=cfg.ddp.grad_reduce_in_fp32,
        overlap_grad_reduce=cfg.ddp.overlap_grad_reduce,
        overlap_param_gather=cfg.ddp.overlap_param_gather,
        bucket_size=cfg.ddp.bucket_size if cfg.ddp.overlap_grad_reduce else None,
    )
    # Only the first chunk's backward comes last, with nothing to hide one large bucket behind.
    return DistributedDataParallel(
        module.config, ddp_config, module, disable_bucketing=not first, pg_collection=layout.groups
    )


def _one_or_list(functions: list[Callable[..., Any]]) -> Any:
    """megatron-core's schedules take one function, the interleaved one a list."""
    return functions if len(functions) > 1 else functions[0]


def build_optimizer(
    chunks: list[DistributedDataParallel], cfg: ConfigContainer, dtype: torch.dtype
) -> ChainedOptimizer:
    """The optimizer over the parameters of `chunks` that need a gradient."""
    settings = MegatronOptimizerConfig(
        **asdict(cfg.optimizer),  # megatron-core's own names
        bf16=dtype == torch.bfloat16,
        params_dtype=dtype,
        use_distributed_optimizer=cfg.ddp.use_distributed_optimizer,
        overlap_param_gather=cfg.ddp.overlap_param_gather,
    )
    built = get_megatron_optimizer(settings, chunks, use_gloo_process_groups=False)
    _fuse_on_cpu(built)
    return built


def _fuse_on_cpu(optimizer: ChainedOptimizer) -> None:
    """Let torch's AdamW update a CPU's parameters in one pass: it is 9 times as fast, and off by default.

    megatron-core makes the optimizer and has no setting for this; torch reads the choice from the groups.
    """
    for group in optimizer.param_groups:
        if "fused" in group and all(p.device.type == "cpu" for p in group["params"]):
            group["fused"] = True


def build_scheduler(optimizer: ChainedOptimizer, cfg: ConfigContainer, derived: Derived) -> OptimizerParamScheduler:
    """The schedule of learning rate and weight decay: a function of the step, counted in iterations.

    A checkpoint brings the step; everything else is the configuration's, which may be another one than it was.
    """
    s = cfg.scheduler
    return OptimizerParamScheduler(
        optimizer,
        init_lr=s.lr_warmup_init,
        max_lr=cfg.optimizer.lr,
        min_lr=cfg.optimizer.min_lr,
        lr_warmup_steps=derived.lr_warmup_iters,
        lr_decay_steps=derived.lr_decay_iters,
        lr_decay_style=s.lr_decay_style,
        start_wd=derived.start_weight_decay,
        end_wd=derived.end_weight_decay,
        wd_incr_steps=derived.train_iters,
        wd_incr_style=s.weight_decay_incr_style,
        wsd_decay_steps=s.lr_wsd_decay_iters,
        lr_wsd_decay_style=s.lr_wsd_decay_style,
        use_checkpoint_opt_param_scheduler=False,
        override_opt_param_scheduler=True,
    )
