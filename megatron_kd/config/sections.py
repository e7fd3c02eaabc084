"""The sections of a run's configuration: plain values, named as in Megatron Bridge.

Nothing here checks or derives: `problems` does the first, `derived` the second. Nothing here imports torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from megatron_kd.config.on_resume import Applies, Fixed, Free


@dataclass(kw_only=True)
class TrainConfig:
    """How long and in what portions. Batch sizes are in sequences, not tokens.

    The length is given once: as `train_iters`, or as `num_epochs` with `train_iters` null.
    """

    train_iters: Applies[int | None] = 1000
    num_epochs: Applies[float | None] = None  # times that the training split is read
    global_batch_size: Applies[int | None] = 8  # None: micro_batch_size x data-parallel ranks
    micro_batch_size: Free[int] = 1


@dataclass(kw_only=True)
class ValidationConfig:
    """When to evaluate on held-out data, and what follows. `eval_interval` 0 means only at the end.

    The best validation is that of the best `best_metric`, one of `config.metrics.comparable`. With `patience`, a run
    ends after that many validations in a row without a better one.
    """

    eval_interval: Free[int] = 100
    eval_iters: Applies[int] = 10  # global batches
    best_metric: Applies[str | None] = None  # None: teacher_kl with a teacher, else lm_loss
    patience: Applies[int | None] = None  # None: never ends early


@dataclass(kw_only=True)
class OptimizerConfig:
    """megatron-core's Adam (decoupled weight decay) or SGD."""

    optimizer: Fixed[Literal["adam", "sgd"]] = "adam"
    lr: Applies[float] = 3e-4
    min_lr: Applies[float] = 0.0
    weight_decay: Applies[float] = 0.01
    adam_beta1: Applies[float] = 0.9
    adam_beta2: Applies[float] = 0.95
    adam_eps: Applies[float] = 1e-8
    sgd_momentum: Applies[float] = 0.9
    clip_grad: Applies[float] = 1.0


@dataclass(kw_only=True)
class SchedulerConfig:
    """The learning-rate schedule, in iterations."""

    lr_decay_style: Applies[Literal["constant", "linear", "cosine", "inverse-square-root", "WSD"]] = "cosine"
    lr_warmup_iters: Applies[int | None] = None  # None: lr_warmup_fraction of lr_decay_iters
    lr_warmup_fraction: Applies[float] = 0.0
    lr_warmup_init: Applies[float] = 0.0
    lr_decay_iters: Applies[int | None] = None  # None: train.train_iters
    lr_wsd_decay_style: Applies[Literal["exponential", "linear", "cosine", "minus_sqrt"]] = "exponential"
    lr_wsd_decay_iters: Applies[int | None] = None
    start_weight_decay: Applies[float | None] = None  # None: optimizer.weight_decay
    end_weight_decay: Applies[float | None] = None
    weight_decay_incr_style: Applies[Literal["constant", "linear", "cosine"]] = "constant"


@dataclass(kw_only=True)
class DDPConfig:
    """megatron-core's distributed data parallelism."""

    use_distributed_optimizer: Fixed[bool] = True  # megatron-core cannot load the state of one kind into the other
    grad_reduce_in_fp32: Applies[bool] = True
    overlap_grad_reduce: Free[bool] = False
    overlap_param_gather: Free[bool] = False
    bucket_size: Free[int | None] = None


@dataclass(kw_only=True)
class DatasetConfig:
    """Tokenised text in megatron's `.bin/.idx` format, or a text file that becomes that when the run starts.

    `data_path` lists path prefixes, or alternates weights and prefixes; it is cut by `split`. Or give each
    split its own list. `text_path` is a `.txt` file with one document per line, or a `.jsonl` file with one at each
    line's `text`; it is tokenised into `logger.run_dir`/data and cut by `split` too. `mock` is synthetic data, and
    must be set explicitly.

    With `chat`, all of it is conversations, learnt where the assistant speaks: files of `megatron-kd preprocess
    --chat`, or a `.jsonl` file of messages. Each has a sequence of its own, filled up with padding, or shares one with
    others (`packed_sequence`), none of which sees another.
    """

    text_path: Fixed[str | None] = None
    data_path: Fixed[list[str | float] | None] = None
    split: Fixed[str] = "949,50,1"
    train_data_path: Fixed[list[str | float] | None] = None
    valid_data_path: Fixed[list[str | float] | None] = None
    test_data_path: Free[list[str | float] | None] = None
    mock: Fixed[bool] = False
    path_to_cache: Free[str | None] = None  # None: beside the data
    verify: Free[Literal["hash", "size"]] = (
        "hash"  # with PREFIX.sha256.json: content once for each file, or sizes alone
    )
    random_seed: Fixed[int | None] = None  # None: rng.seed
    num_workers: Free[int] = 0
    eod_mask_loss: Fixed[bool] = False
    chat: Fixed[bool] = False
    packed_sequence: Fixed[bool] = False
    long_samples: Fixed[Literal["truncate", "drop"]] = "truncate"  # conversations longer than model.seq_length


@dataclass(kw_only=True)
class TokenizerConfig:
    """`huggingface` reads a tokenizer folder or `tokenizer.json`; `null` has `vocab_size` ids and no text.

    The teacher reads the student's ids as they are. `teacher_tokenizer_model` names the tokenizer it was trained with,
    to check at the start that an id means one token to both; None takes it to be the student's.
    """

    tokenizer_type: Fixed[Literal["huggingface", "null"]] = "huggingface"
    tokenizer_model: Fixed[str | None] = None
    teacher_tokenizer_model: Fixed[str | None] = None
    vocab_size: Fixed[int | None] = None  # of the `null` tokenizer


@dataclass(kw_only=True)
class CheckpointConfig:
    """Student checkpoints go to `logger.run_dir`/checkpoints/iter_0000100.

    With `save_hf=true` the last one is also written as a Hugging Face folder, `logger.run_dir`/hf/iter_0000100, with
    `save_hf=each` every one; none of these is dropped.
    """

    save: Free[bool] = True
    save_interval: Free[int] = 1000  # in iterations; the last iteration is always saved
    async_save: Free[bool] = False  # write while training continues, from a copy of the state in host memory
    save_best: Free[bool] = False  # also save whenever a validation is the best so far
    most_recent_k: Free[int | None] = None  # None: keep all; the best is kept besides
    pretrained_checkpoint: Fixed[str | None] = None  # the student's weights to start from
    resume: Free[Literal["auto", "never"] | int] = "auto"  # or the step to continue from
    save_hf: Free[bool | Literal["each"]] = False


@dataclass(kw_only=True)
class LoggerConfig:
    """The output of a run, all of it in one folder."""

    run_dir: Free[str] = "runs/default"
    log_interval: Free[int] = 1
    tensorboard: Free[bool] = True
    progress: Free[Literal["auto", "bar", "plain", "off"]] = "auto"
    verbose: Free[bool] = False  # print the table of teacher placements that `auto` chose from


@dataclass(kw_only=True)
class DistConfig:
    """Ranks and how long they wait for each other, by phase, in seconds."""

    distributed_backend: Free[Literal["nccl", "gloo"] | None] = None  # None: nccl on CUDA machines, else gloo
    startup_timeout_s: Free[int] = 1800
    step_timeout_s: Free[int] = 600
    checkpoint_timeout_s: Free[int] = 1800
    device_memory_gb: Free[float | None] = None  # of a rank's device, for `auto` and `plan`; None: as measured
    num_threads: Free[int | None] = None  # CPU threads per rank; None: cores divided by the ranks of this machine


@dataclass(kw_only=True)
class RNGConfig:
    """One seed makes one model and one order of samples, at any parallel layout."""

    seed: Fixed[int] = 1234


@dataclass(kw_only=True)
class MixedPrecisionConfig:
    """`bf16` keeps fp32 master weights in the optimizer; `fp32` is plain single precision."""

    precision: Fixed[Literal["fp32", "bf16"]] = "fp32"
