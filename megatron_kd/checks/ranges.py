"""Values that are impossible on their own, whatever the others are: one table."""

from __future__ import annotations

from collections.abc import Iterator

from megatron_kd.config.container import ConfigContainer
from megatron_kd.config.kd_rules import KD_RULES
from megatron_kd.config.problem import Problem, value_of
from megatron_kd.config.rules import EPOCHS, FRACTION, NOT_NEGATIVE, OF_HEAD, POSITIVE, SEED, STEPS, TWO_OR_MORE, Rule

MODEL_RULES: dict[str, Rule] = {
    "num_layers": POSITIVE,
    "hidden_size": POSITIVE,
    "ffn_hidden_size": POSITIVE,
    "num_attention_heads": POSITIVE,
    "num_query_groups": POSITIVE,
    "kv_channels": POSITIVE,
    "seq_length": POSITIVE,
    "vocab_size": POSITIVE,
    "make_vocab_size_divisible_by": POSITIVE,
    "layernorm_epsilon": POSITIVE,
    "rotary_base": POSITIVE,
    "rotary_percent": OF_HEAD,
    "rope_scaling_factor": POSITIVE,
    "attention_dropout": FRACTION,
    "hidden_dropout": FRACTION,
    "init_method_std": POSITIVE,
    "max_position_embeddings": POSITIVE,
    "tensor_model_parallel_size": POSITIVE,
    "pipeline_model_parallel_size": POSITIVE,
    "virtual_pipeline_model_parallel_size": POSITIVE,
    "context_parallel_size": POSITIVE,
    "recompute_num_layers": POSITIVE,
    "quantization_calibration_batches": POSITIVE,
}

TEACHER_RULES: dict[str, Rule] = {
    "teacher_rank": NOT_NEGATIVE,
    "teacher_micro_batch_size": POSITIVE,
}

SECTION_RULES: dict[str, Rule] = {
    "train.train_iters": STEPS,
    "train.num_epochs": EPOCHS,
    "train.global_batch_size": POSITIVE,
    "train.micro_batch_size": POSITIVE,
    "validation.eval_interval": NOT_NEGATIVE,
    "validation.eval_iters": NOT_NEGATIVE,
    "validation.patience": POSITIVE,
    "optimizer.lr": POSITIVE,
    "optimizer.min_lr": NOT_NEGATIVE,
    "optimizer.weight_decay": NOT_NEGATIVE,
    "optimizer.adam_beta1": FRACTION,
    "optimizer.adam_beta2": FRACTION,
    "optimizer.adam_eps": POSITIVE,
    "optimizer.sgd_momentum": FRACTION,
    "optimizer.clip_grad": NOT_NEGATIVE,
    "scheduler.lr_warmup_iters": NOT_NEGATIVE,
    "scheduler.lr_warmup_fraction": FRACTION,
    "scheduler.lr_warmup_init": NOT_NEGATIVE,
    "scheduler.lr_decay_iters": POSITIVE,
    "scheduler.lr_wsd_decay_iters": POSITIVE,
    "scheduler.start_weight_decay": NOT_NEGATIVE,
    "scheduler.end_weight_decay": NOT_NEGATIVE,
    "ddp.bucket_size": POSITIVE,
    "dataset.random_seed": SEED,
    "dataset.num_workers": NOT_NEGATIVE,
    "tokenizer.vocab_size": TWO_OR_MORE,
    "checkpoint.save_interval": POSITIVE,
    "checkpoint.most_recent_k": POSITIVE,
    "checkpoint.resume": NOT_NEGATIVE,
    "logger.log_interval": POSITIVE,
    "dist.startup_timeout_s": POSITIVE,
    "dist.step_timeout_s": POSITIVE,
    "dist.checkpoint_timeout_s": POSITIVE,
    "dist.device_memory_gb": POSITIVE,
    "dist.num_threads": POSITIVE,
    "rng.seed": SEED,
}


def range_problems(cfg: ConfigContainer) -> Iterator[Problem]:
    """Every number outside its range. Unset values and names are left alone."""
    rules = {f"{name}.{key}": rule for name, _ in cfg.models.by_field() for key, rule in MODEL_RULES.items()}
    if cfg.distillation is not None:
        rules |= {f"model.kd_config.{key}": rule for key, rule in KD_RULES.items()}
        rules |= {f"model.{key}": rule for key, rule in TEACHER_RULES.items()}
    for name, rule in (rules | SECTION_RULES).items():
        value = value_of(cfg, name)
        if isinstance(value, int | float) and not rule.holds(value):
            yield Problem.of(cfg, name, rule.words)
