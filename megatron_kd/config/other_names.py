"""Names that other frameworks give to the settings of a run, and the fields they mean here.

The names are those of TRL and transformers, Megatron-LM, Megatron Bridge, NeMo, torchtune, LLaMA-Factory and axolotl,
in lower case and with underscores. Only the last part of a dotted name counts: their sections differ. None is a field
of this project.
"""

from __future__ import annotations

from collections.abc import Mapping

from megatron_kd.config.values import FieldPath

# Each name and the field it means, or the field with the value that switches it on.
_FIELDS: Mapping[str, str] = {
    # steps, epochs, batches
    **dict.fromkeys(("max_steps", "max_iters", "num_steps", "total_steps", "num_training_steps"), "train.train_iters"),
    **dict.fromkeys(("max_steps_per_epoch", "exit_interval", "iterations"), "train.train_iters"),
    **dict.fromkeys(("num_train_epochs", "epochs", "max_epochs", "n_epochs"), "train.num_epochs"),
    **dict.fromkeys(("per_device_train_batch_size", "per_gpu_batch_size", "batch_size"), "train.micro_batch_size"),
    **dict.fromkeys(("train_batch_size", "total_batch_size"), "train.global_batch_size"),
    # optimizer and schedule
    **dict.fromkeys(("learning_rate", "max_lr", "base_lr"), "optimizer.lr"),
    **dict.fromkeys(("min_learning_rate", "lr_min", "eta_min"), "optimizer.min_lr"),
    **dict.fromkeys(("optim", "optimizer_type", "optimizer_name"), "optimizer.optimizer"),
    **dict.fromkeys(("adam_epsilon", "epsilon"), "optimizer.adam_eps"),
    **dict.fromkeys(("max_grad_norm", "clip_grad_norm", "gradient_clip_val", "grad_clip"), "optimizer.clip_grad"),
    **dict.fromkeys(("lr_scheduler_type", "lr_scheduler", "scheduler_type"), "scheduler.lr_decay_style"),
    **dict.fromkeys(("warmup_steps", "num_warmup_steps", "lr_warmup_steps"), "scheduler.lr_warmup_iters"),
    **dict.fromkeys(("warmup_ratio", "warmup_fraction"), "scheduler.lr_warmup_fraction"),
    **dict.fromkeys(("lr_decay_steps", "decay_steps"), "scheduler.lr_decay_iters"),
    # precision, recompute, layout
    **dict.fromkeys(("bf16", "bf16_mixed"), "mixed_precision.precision=bf16"),
    **dict.fromkeys(("torch_dtype", "params_dtype", "dtype"), "mixed_precision.precision"),
    **dict.fromkeys(
        ("recompute_activations", "enable_activation_checkpointing", "activation_checkpointing"),
        "model.recompute_granularity=full model.recompute_method=uniform model.recompute_num_layers=1",
    ),
    **dict.fromkeys(
        ("tensor_parallel_size", "tensor_model_parallel", "tp_size", "tp"), "model.tensor_model_parallel_size"
    ),
    **dict.fromkeys(
        ("pipeline_parallel_size", "pipeline_model_parallel", "pp_size", "pp"), "model.pipeline_model_parallel_size"
    ),
    **dict.fromkeys(("cp_size", "cp"), "model.context_parallel_size"),
    "virtual_pipeline_parallel_size": "model.virtual_pipeline_model_parallel_size",
    # architecture
    **dict.fromkeys(
        ("max_length", "max_seq_length", "max_seq_len", "sequence_length", "sequence_len", "encoder_seq_length"),
        "model.seq_length",
    ),
    **dict.fromkeys(("cutoff_len", "block_size", "model_max_length"), "model.seq_length"),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers"), "model.num_layers"),
    **dict.fromkeys(("intermediate_size", "ffn_dim"), "model.ffn_hidden_size"),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads"), "model.num_query_groups"),
    **dict.fromkeys(("num_heads", "n_head", "n_heads"), "model.num_attention_heads"),
    "head_dim": "model.kv_channels",
    "rope_theta": "model.rotary_base",
    **dict.fromkeys(("rms_norm_eps", "norm_epsilon"), "model.layernorm_epsilon"),
    "initializer_range": "model.init_method_std",
    "swiglu": "model.gated_linear_unit=true",
    "disable_bias_linear": "model.add_bias_linear=false",
    "tie_word_embeddings": "model.share_embeddings_and_output_weights",
    "untie_embeddings_and_output_weights": "model.share_embeddings_and_output_weights=false",
    # models and checkpoints
    **dict.fromkeys(("model_name_or_path", "model_path", "base_model", "student_model"), "model.hf_path"),
    **dict.fromkeys(
        ("teacher_model_name_or_path", "teacher_model", "teacher_model_path", "kd_teacher"), "model.teacher.hf_path"
    ),
    **dict.fromkeys(
        ("export_kd_teacher_load", "kd_teacher_restore_from_path", "teacher_checkpoint", "teacher_load"),
        "model.teacher.checkpoint",
    ),
    **dict.fromkeys(("restore_from_path", "init_checkpoint"), "checkpoint.pretrained_checkpoint"),
    **dict.fromkeys(("resume_step", "ckpt_step"), "checkpoint.resume"),
    **dict.fromkeys(("save_steps", "save_freq", "checkpoint_interval"), "checkpoint.save_interval"),
    **dict.fromkeys(("load_best_model_at_end", "save_best_model"), "checkpoint.save_best=true"),
    **dict.fromkeys(("save_total_limit", "keep_last_n", "save_top_k"), "checkpoint.most_recent_k"),
    # losses
    **dict.fromkeys(("temperature", "kd_temperature"), "model.kd_config.logit_kl_temperature"),
    "beta": "model.kd_config.logits_loss_beta",
    **dict.fromkeys(("alpha", "kd_ratio", "kd_alpha", "kd_loss_weight"), "model.kd_config.kd_loss_scale"),
    **dict.fromkeys(("kd_top_k", "top_k_logits", "logits_topk"), "model.kd_config.logit_kl_topk"),
    **dict.fromkeys(("export_kd_cfg", "kd_cfg", "distill_config", "distillation_config"), "model.kd_config"),
    # data
    **dict.fromkeys(("data_prefix", "dataset_path", "datasets", "blend"), "dataset.data_path"),
    "train_file": "dataset.text_path",
    "mock_data": "dataset.mock=true",
    **dict.fromkeys(("packing", "sample_packing", "neat_packing", "packed"), "dataset.packed_sequence"),
    **dict.fromkeys(("dataloader_num_workers", "num_dataloader_workers"), "dataset.num_workers"),
    "data_cache_path": "dataset.path_to_cache",
    "data_seed": "dataset.random_seed",
    **dict.fromkeys(("tokenizer_name", "tokenizer_name_or_path", "tokenizer_path"), "tokenizer.tokenizer_model"),
    # evaluation, logs, waiting
    **dict.fromkeys(("eval_steps", "val_check_interval", "run_val_every_n_steps"), "validation.eval_interval"),
    **dict.fromkeys(("limit_val_batches", "max_eval_batches", "eval_batches"), "validation.eval_iters"),
    **dict.fromkeys(("metric_for_best_model", "monitor"), "validation.best_metric"),
    "early_stopping_patience": "validation.patience",
    **dict.fromkeys(("output_dir", "explicit_log_dir", "exp_dir", "save_dir", "output_path"), "logger.run_dir"),
    **dict.fromkeys(("logging_steps", "log_every_n_steps", "log_freq"), "logger.log_interval"),
    "tensorboard_dir": "logger.tensorboard=true",
    **dict.fromkeys(("ddp_timeout", "nccl_timeout"), "dist.step_timeout_s"),
    "random_state": "rng.seed",
}

# How runs resume here, in place of a checkpoint to load.
RESUMING = (
    "a run resumes by itself in its logger.run_dir; set checkpoint.resume=N for the checkpoint of step N, or "
    "checkpoint.pretrained_checkpoint=DIR in a new logger.run_dir for weights alone"
)

# Each name of something that this project has no setting for, and the nearest way.
_ABSENT: Mapping[str, str] = {
    **dict.fromkeys(("resume_from_checkpoint", "load"), RESUMING),
    **dict.fromkeys(
        ("no_load_optim", "no_load_rng", "finetune", "reset_optimizer"),
        "weights are read without the states of optimizer and random numbers by checkpoint.pretrained_checkpoint=DIR "
        "in a new logger.run_dir",
    ),
    "overwrite_output_dir": "checkpoints are never overwritten; set another logger.run_dir",
    "save_only_model": "checkpoints hold the optimizer too, so that runs resume; checkpoint.save_hf=true or "
    "`megatron-kd export-hf` writes the weights alone",
    **dict.fromkeys(
        ("push_to_hub", "hub_model_id"), "nothing is uploaded; set checkpoint.save_hf=true or use `megatron-kd "
        "export-hf`, then `hf upload NAME DIR`",
    ),
    **dict.fromkeys(
        ("eval_strategy", "evaluation_strategy"), "validations are counted in steps; set validation.eval_interval",
    ),
    "save_strategy": "saves are counted in steps; set checkpoint.save_interval",
    "logging_strategy": "logged lines are counted in steps; set logger.log_interval",
    "greater_is_better": "each metric's direction is known; set validation.best_metric alone",
    "rampup_batch_size": "the batch size does not ramp up; set train.global_batch_size",
    "distributed_timeout_minutes": "set dist.step_timeout_s, in seconds",
    **dict.fromkeys(
        ("val_size", "val_set_size", "validation_split"),
        "data is divided by shares; set dataset.split=90,10 for 90% training and 10% validation data",
    ),
    "validation_file": "tokenise it with `megatron-kd preprocess`, and set dataset.valid_data_path=[PREFIX]",
    **dict.fromkeys(
        ("dataset_name", "dataset_config", "dataset_config_name"),
        "nothing is downloaded: `hf download NAME --repo-type dataset --local-dir DIR`, then set dataset.text_path to "
        "a text file, or dataset.data_path to what `megatron-kd preprocess` made",
    ),
    **dict.fromkeys(
        ("dataset_text_field", "text_column"),
        "text is read at the key 'text'; for another, use `megatron-kd preprocess --json-key KEY` and set "
        "dataset.data_path",
    ),
    **dict.fromkeys(
        ("assistant_only_loss", "completion_only_loss", "train_on_inputs"),
        "with dataset.chat=true, only what the assistant says counts in the loss; without, all text does",
    ),
    "loss_type": "losses are set in model.kd_config: model.kd_config.logits_loss_kind, model.kd_config.skip_lm_loss",
    **dict.fromkeys(("use_liger_kernel", "use_liger", "liger_kernel"), "losses are fused already; leave it out"),
    "teacher_model_init_kwargs": "set the teacher's own fields, such as model.teacher.hf_path and model.teacher_dtype",
    "model_init_kwargs": "set the student's own fields, such as model.hf_path and mixed_precision.precision",
    **dict.fromkeys(("label_smoothing_factor", "label_smoothing"), "label smoothing is not supported; leave it out"),
    "neftune_noise_alpha": "noise on embeddings is not supported; leave it out",
    **dict.fromkeys(
        ("gradient_accumulation_steps", "accumulate_grad_batches", "gradient_accumulation"),
        "micro-batches are accumulated until train.global_batch_size is reached; set that and train.micro_batch_size",
    ),
    **dict.fromkeys(
        ("per_device_eval_batch_size", "eval_batch_size"), "an evaluation takes batches as training does; set "
        "validation.eval_iters for their number",
    ),
    **dict.fromkeys(
        ("train_samples", "lr_decay_samples", "lr_warmup_samples"),
        "lengths are in steps; set train.train_iters to the samples divided by train.global_batch_size",
    ),
    **dict.fromkeys(("fp16", "fp16_mixed"), "a student computes in fp32 or bf16; set mixed_precision.precision=bf16"),
    **dict.fromkeys(
        ("report_to", "wandb_project", "wandb_name", "metric_logger", "logger_type", "use_wandb"),
        "metrics go to metrics.jsonl in logger.run_dir, and with logger.tensorboard=true to TensorBoard",
    ),
    **dict.fromkeys(
        ("lora_r", "lora_rank", "lora_alpha", "lora_dropout", "lora_target", "use_peft", "peft", "finetuning_type"),
        "LoRA is not supported: all weights of the student are trained; leave it out",
    ),
    **dict.fromkeys(
        ("num_experts", "expert_model_parallel_size", "moe_router_topk", "expert_parallel_size"),
        "mixtures of experts are not supported; use a dense model",
    ),
    **dict.fromkeys(
        ("use_flash_attn", "flash_attn", "attn_implementation", "attention_backend", "compile", "torch_compile"),
        "kernels are chosen by what is installed, TransformerEngine's first; leave it out",
    ),
    **dict.fromkeys(
        ("deepspeed", "fsdp", "fsdp_config", "zero_stage"),
        "models are sharded by model.tensor_model_parallel_size and model.pipeline_model_parallel_size, and optimizer "
        "states by ddp.use_distributed_optimizer",
    ),
    **dict.fromkeys(
        ("lmbda", "seq_kd", "max_new_tokens"), "students learn from the text of dataset.data_path alone, and generate "
        "none in training; leave it out",
    ),
    **dict.fromkeys(
        ("devices", "num_nodes", "nproc_per_node", "num_processes", "world_size"),
        "ranks are the launcher's business: `megatron-kd launch --local RECIPE --nproc N`, or `--slurm --nodes N`",
    ),
    **dict.fromkeys(
        ("chat_template", "preprocessing_num_workers", "template"),
        "text is prepared by `megatron-kd preprocess`, which has options for it; set dataset.data_path to what it made",
    ),
    **dict.fromkeys(
        ("exit_duration_in_mins", "max_time"),
        "a run stops on signals, which save first: SIGTERM or SIGUSR1, as SLURM sends before the time limit",
    ),
}  # fmt: skip

# Options of Megatron-LM that are named like fields of ours which mean something else.
_OPTIONS: Mapping[str, str] = {
    "save": "logger.run_dir",
}


def words_for(path: FieldPath) -> str | None:
    """The field that another framework's name means, or the words that set it, `a.b=1 c.d=2`; None if unknown.

    A name of the teacher's means a field of the teacher's, or none.
    """
    words = _FIELDS.get(_plain(path[-1]))
    if words is None or path[:2] != ("model", "teacher"):
        return words
    of_model = [word.partition("model.") for word in words.split()]
    return " ".join(f"model.teacher.{word}" for _, _, word in of_model) if not any(b for b, _, _ in of_model) else None


def instead_of(name: str) -> str | None:
    """The nearest way to what another framework sets and this one does not; None if the name is unknown."""
    return _ABSENT.get(_plain(name))


def words_for_option(name: str) -> str | None:
    """As `words_for`, for an option of a command line: `--learning-rate`, or Megatron-LM's `--save`."""
    plain = _plain(name)
    return _OPTIONS.get(plain) or _FIELDS.get(plain)


def every_name() -> dict[str, str]:
    """All names, with the words or the sentence of each."""
    return {**_ABSENT, **_FIELDS}


def _plain(name: str) -> str:
    return name.lstrip("-").replace("-", "_").lower()
