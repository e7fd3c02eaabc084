"""Values derived from a configuration. All functions are pure; nothing is written back to the configuration."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from megatron_kd.config.container import ConfigContainer
from megatron_kd.config.run_config import RUN_CONFIG
from megatron_kd.errors import ConfigError

_PRECISION_DTYPE = {"fp32": "float32", "bf16": "bfloat16"}


@dataclass(frozen=True, kw_only=True)
class Derived:
    """Quantities of a run that its configuration implies.

    Attributes:
        train_iters: steps of the whole run.
        global_batch_size: sequences of a step, over all ranks.
        num_microbatches: a data-parallel rank's share of a global batch, in micro-batches.
        true_vocab_size: number of the student's token ids; ids at and above it are padding.
        teacher_vocab_size: the teacher's; None without a teacher. The ids below both sizes are the shared ones.
        padded_vocab_size: width of embeddings and heads, of student and teacher alike.
        lr_warmup_iters: the step at which the learning rate has risen to `optimizer.lr`.
        start_weight_decay, end_weight_decay: of the first and the last step.
        lr_decay_iters: the step at which the learning rate has come down to `optimizer.min_lr`.
        student_dtype, teacher_dtype: "float32", "bfloat16" or "float16"; the teacher's is None without a teacher.
    """

    world_size: int
    data_parallel_size: int
    train_iters: int
    global_batch_size: int
    num_microbatches: int
    true_vocab_size: int
    teacher_vocab_size: int | None
    padded_vocab_size: int
    lr_warmup_iters: int
    lr_decay_iters: int
    start_weight_decay: float
    end_weight_decay: float
    data_seed: int
    student_dtype: str
    teacher_dtype: str | None
    run_dir: Path
    run_config_file: Path
    checkpoints_dir: Path
    tensorboard_dir: Path
    metrics_file: Path
    best_file: Path


def derived(cfg: ConfigContainer, world_size: int, tokenizer_vocab_size: int | None = None) -> Derived:
    """Work out what follows from a configuration that has no `problems`.

    Args:
        cfg: the configuration.
        world_size: number of ranks.
        tokenizer_vocab_size: ids of the tokenizer, for a model that does not say its own vocabulary size.

    Raises:
        ConfigError: no vocabulary size is known, or no number of steps (`with_run_length` makes one of epochs).
    """
    true_vocab, padded_vocab = true_vocab_size(cfg, tokenizer_vocab_size), vocab_width(cfg, tokenizer_vocab_size)
    if true_vocab is None or padded_vocab is None:
        raise ConfigError(["model.vocab_size=null: no tokenizer tells the vocabulary size; set model.vocab_size"])
    warmup, decay = lr_warmup_iters(cfg), lr_decay_iters(cfg)
    if cfg.train.train_iters is None or warmup is None or decay is None:
        raise ConfigError(["train.train_iters=null: the length of the run is not known; set train.train_iters"])
    run_dir = Path(cfg.logger.run_dir)
    data_parallel = data_parallel_size(cfg, world_size)
    batch = global_batch_size(cfg, data_parallel)
    start_decay, end_decay = weight_decay_range(cfg)
    return Derived(
        world_size=world_size,
        data_parallel_size=data_parallel,
        train_iters=cfg.train.train_iters,
        global_batch_size=batch,
        num_microbatches=batch // (cfg.train.micro_batch_size * data_parallel),
        true_vocab_size=true_vocab,
        teacher_vocab_size=teacher_vocab_size(cfg, tokenizer_vocab_size),
        padded_vocab_size=padded_vocab,
        lr_warmup_iters=warmup,
        lr_decay_iters=decay,
        start_weight_decay=start_decay,
        end_weight_decay=end_decay,
        data_seed=data_seed(cfg),
        student_dtype=student_dtype(cfg),
        teacher_dtype=teacher_dtype(cfg),
        run_dir=run_dir,
        run_config_file=run_dir / RUN_CONFIG,
        checkpoints_dir=run_dir / "checkpoints",
        tensorboard_dir=run_dir / "tensorboard",
        metrics_file=run_dir / "metrics.jsonl",
        best_file=run_dir / "best.json",
    )


def padded_vocab_size(true_size: int, divisible_by: int) -> int:
    """The width a vocabulary is built at: its true size rounded up, whatever the tensor-parallel size."""
    return -(-true_size // divisible_by) * divisible_by


def true_vocab_size(cfg: ConfigContainer, tokenizer_vocab_size: int | None = None) -> int | None:
    """The student's number of token ids: its own, else the tokenizer's; None when neither is known."""
    return cfg.model.vocab_size or _tokenizer_vocab_size(cfg, tokenizer_vocab_size)


def teacher_vocab_size(cfg: ConfigContainer, tokenizer_vocab_size: int | None = None) -> int | None:
    """The teacher's number of token ids, by the same rule; None also when there is no teacher."""
    teacher = cfg.models.teacher
    if teacher is None:
        return None
    return teacher.vocab_size or _tokenizer_vocab_size(cfg, tokenizer_vocab_size)


def shared_vocab_size(cfg: ConfigContainer, tokenizer_vocab_size: int | None = None) -> int | None:
    """How many ids, from 0 on, all models of the run have; None when unknown."""
    student = true_vocab_size(cfg, tokenizer_vocab_size)
    teacher = teacher_vocab_size(cfg, tokenizer_vocab_size)
    return student if student is None or teacher is None else min(student, teacher)


def vocab_width(cfg: ConfigContainer, tokenizer_vocab_size: int | None = None) -> int | None:
    """The one padded width of both heads, the larger of the student's and the teacher's; None when unknown."""
    student = true_vocab_size(cfg, tokenizer_vocab_size)
    if student is None:
        return None
    width = padded_vocab_size(student, cfg.model.make_vocab_size_divisible_by)
    teacher = cfg.models.teacher
    if teacher is None:
        return width
    teacher_size = teacher_vocab_size(cfg, tokenizer_vocab_size) or student
    return max(width, padded_vocab_size(teacher_size, teacher.make_vocab_size_divisible_by))


def _tokenizer_vocab_size(cfg: ConfigContainer, known: int | None) -> int | None:
    return known if known is not None or cfg.tokenizer.tokenizer_type != "null" else cfg.tokenizer.vocab_size


def model_parallel_size(cfg: ConfigContainer) -> int:
    """Ranks that hold one copy of the model: tensor x pipeline x context."""
    model = cfg.model
    return model.tensor_model_parallel_size * model.pipeline_model_parallel_size * model.context_parallel_size


def data_parallel_size(cfg: ConfigContainer, world_size: int) -> int:
    """Ranks that work on different samples: those that are left when each has its part of the model."""
    return world_size // model_parallel_size(cfg)


def global_batch_size(cfg: ConfigContainer, data_parallel: int) -> int:
    """Sequences of a step: as given, else one micro-batch on each data-parallel rank."""
    given = cfg.train.global_batch_size
    return cfg.train.micro_batch_size * data_parallel if given is None else given


def samples_of(num_epochs: float, train_tokens: int, seq_length: int) -> int:
    """The samples in `num_epochs` times `train_tokens`.

    Epochs follow on each other without a break, as megatron-core reads them, and a sample needs one token more than
    its length, the label of its last: E epochs of T tokens have (E * T - 1) // S samples of S tokens. A run leaves out
    what does not fill a last global batch, so that no token is read more often than asked for.
    """
    return (int(num_epochs * train_tokens) - 1) // seq_length


def lr_decay_iters(cfg: ConfigContainer) -> int | None:
    """Steps until the learning rate is at its minimum; None where the run's length is in epochs, not yet counted."""
    return cfg.train.train_iters if cfg.scheduler.lr_decay_iters is None else cfg.scheduler.lr_decay_iters


def lr_warmup_iters(cfg: ConfigContainer) -> int | None:
    """Steps until the learning rate is at its maximum: as given, else the given share of the schedule.

    None while the length of the schedule is unknown.
    """
    decay = lr_decay_iters(cfg)
    if cfg.scheduler.lr_warmup_iters is not None or decay is None:
        return cfg.scheduler.lr_warmup_iters
    return int(cfg.scheduler.lr_warmup_fraction * decay)


def weight_decay_range(cfg: ConfigContainer) -> tuple[float, float]:
    """Weight decay of the first and the last step."""
    constant, start, end = cfg.optimizer.weight_decay, cfg.scheduler.start_weight_decay, cfg.scheduler.end_weight_decay
    return constant if start is None else start, constant if end is None else end


def data_seed(cfg: ConfigContainer) -> int:
    """The seed of the order of the data."""
    return cfg.rng.seed if cfg.dataset.random_seed is None else cfg.dataset.random_seed


def student_dtype(cfg: ConfigContainer) -> str:
    """The student's compute precision as torch names it."""
    return _PRECISION_DTYPE[cfg.mixed_precision.precision]


def teacher_dtype(cfg: ConfigContainer) -> str | None:
    """The teacher's precision: its own, else the student's; None without a teacher."""
    model = cfg.distillation
    if model is None:
        return None
    return model.teacher_dtype or student_dtype(cfg)
