"""From a teacher on disk to a smaller student on disk, in one process.

The whole teacher is in this process's memory, on the GPU where there is one, and the student beside it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

from megatron_kd.checkpoints.contents import architecture_of
from megatron_kd.checkpoints.model_weights import load_weights, saved_vocab_size
from megatron_kd.checkpoints.weights_only import save_weights
from megatron_kd.config.derived import padded_vocab_size
from megatron_kd.config.gpt_model import GPTModelProvider
from megatron_kd.config.sections import DatasetConfig, TokenizerConfig
from megatron_kd.data.loader import micro_batches
from megatron_kd.data.preprocessing.run_text import tokenised
from megatron_kd.data.samples.datasets import build_datasets
from megatron_kd.data.tokens.tokenizer import Tokenizer, load_tokenizer
from megatron_kd.errors import ConfigError, InputError
from megatron_kd.huggingface.architecture import provider_from_hf
from megatron_kd.huggingface.find_model import find_model
from megatron_kd.huggingface.read import load_huggingface
from megatron_kd.models.build_gpt import ModelShard
from megatron_kd.models.micro_batch import MicroBatch
from megatron_kd.models.weights import local_shards
from megatron_kd.runtime.layout import Layout
from megatron_kd.runtime.start import running_ranks
from megatron_kd.students.minitron import Depth, measure_and_cut, prunable_model
from megatron_kd.students.prune_problems import Calibration, prune_problems
from megatron_kd.students.pruned_sizes import Sizes, pruned_architecture


@dataclass(frozen=True, kw_only=True)
class Pruned:
    """The result of `prune`: its folder, both architectures, and the teacher's layers that were kept."""

    folder: Path
    teacher: GPTModelProvider
    student: GPTModelProvider
    depth: Depth


def read_teacher(path: str | Path) -> GPTModelProvider:
    """The architecture of a checkpoint or Hugging Face folder, its vocabulary's size included.

    Raises:
        InputError: neither, or one that does not say what model it is.
    """
    folder, is_huggingface = find_model(path, "TEACHER")
    if is_huggingface:
        return provider_from_hf(folder)
    model = architecture_of(folder, "TEACHER")
    vocab_size = model.vocab_size or saved_vocab_size(folder)
    if vocab_size is None:
        raise InputError(f"TEACHER={folder}: does not say how many token ids its model has")
    return replace(model, vocab_size=vocab_size, checkpoint=str(folder))


def prune(
    teacher: str | Path, output: str | Path, sizes: Sizes, calibration: Calibration, *, dtype: str = "float32"
) -> Pruned:
    """Prune `teacher` to `sizes` by its importance on `calibration`, and write the student as a checkpoint of weights.

    The same command gives the same bits on the same machine.

    Args:
        teacher: a checkpoint, `checkpoints` or run folder, or a Hugging Face folder.
        output: the checkpoint's folder, which must not be there.
        sizes: of the student.
        calibration: what importance is measured on.
        dtype: of the teacher while it is measured, and of the student's weights: "float32" or "bfloat16".

    Raises:
        ConfigError: all that `prune_problems` finds.
        InputError: what only shows when the data is read or the teacher run.
    """
    model = read_teacher(teacher)
    if wrong := list(prune_problems(model, sizes, calibration, Path(output))):
        raise ConfigError(wrong)
    tokenizer = load_tokenizer(calibration.tokenizer)
    assert model.vocab_size is not None
    if tokenizer.vocab_size > model.vocab_size:
        raise InputError(
            f"the tokenizer {calibration.tokenizer.tokenizer_model} has {tokenizer.vocab_size} ids and the teacher "
            f"{model.vocab_size}: give the teacher's own by --tokenizer"
        )
    with (
        running_ranks(tensor_model_parallel_size=1, pipeline_model_parallel_size=1, seed=calibration.seed) as layout,
        TemporaryDirectory() as scratch,
    ):
        batches = _batches(calibration, tokenizer, layout, Path(scratch))
        return _prune(model, sizes, batches, layout, Path(output), calibration.tokenizer, dtype)


def _prune(
    teacher: GPTModelProvider,
    sizes: Sizes,
    batches: Iterator[MicroBatch],
    layout: Layout,
    output: Path,
    tokenizer: TokenizerConfig,
    dtype: str,
) -> Pruned:
    assert teacher.vocab_size is not None
    vocab_size = teacher.vocab_size
    whole = ModelShard(
        provider=teacher,
        layout=layout,
        padded_vocab_size=padded_vocab_size(vocab_size, teacher.make_vocab_size_divisible_by),
        vocab_size=vocab_size,
        dtype=dtype,
    )
    model = prunable_model(whole)
    if teacher.hf_path is not None:
        load_huggingface([model], teacher, "TEACHER")
    else:
        load_weights([model], str(teacher.checkpoint), "TEACHER")
    state, depth = measure_and_cut(model, sizes, batches)
    architecture = pruned_architecture(teacher, sizes)
    student = prunable_model(replace(whole, provider=architecture))
    student.load_state_dict(state)
    # Its own file names the teacher, so that an exported student can name its base.
    named = replace(architecture, hf_path=teacher.hf_path, checkpoint=teacher.checkpoint)
    folder = save_weights(local_shards(student), output, model=named, vocab_size=vocab_size, tokenizer=tokenizer)
    return Pruned(folder=folder, teacher=teacher, student=architecture, depth=depth)


def _batches(calibration: Calibration, tokenizer: Tokenizer, layout: Layout, scratch: Path) -> Iterator[MicroBatch]:
    """The first batches of the calibration data's training split, on this rank's device."""
    data = calibration.dataset
    if data.text_path is not None:
        data = DatasetConfig(train_data_path=[tokenised(data.text_path, scratch, tokenizer)])
    train, _, _ = build_datasets(
        data,
        seq_length=calibration.seq_length,
        train_samples=calibration.batches * calibration.batch_size,
        valid_samples=0,
        test_samples=0,
        seed=calibration.seed,
        tokenizer=tokenizer,
        path_to_cache=str(scratch),
    )
    batches = micro_batches(
        train,
        start_step=0,
        global_batch_size=calibration.batch_size,
        micro_batch_size=calibration.batch_size,
        data_parallel_rank=0,
        data_parallel_size=1,
    )
    for batch in islice(batches, calibration.batches):
        yield batch.to(layout.device)
