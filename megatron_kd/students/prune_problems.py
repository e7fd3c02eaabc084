"""Problems of a pruning, all at once and before anything starts. Nothing here needs torch."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from megatron_kd.config.blend import parse_blend
from megatron_kd.config.gpt_model import GPTModelProvider
from megatron_kd.config.hub_names import absent
from megatron_kd.config.problem import Problem
from megatron_kd.config.sections import DatasetConfig, TokenizerConfig
from megatron_kd.data.tokens.token_files import missing_files
from megatron_kd.huggingface.architecture import read_architecture
from megatron_kd.huggingface.folder import folder_problems
from megatron_kd.runtime.files import taken
from megatron_kd.students.pruned_sizes import Sizes, size_problems


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """The data that importance is measured on.

    Attributes:
        dataset: `text_path`, `train_data_path` or `mock`; its training split is read.
        tokenizer: the teacher's.
        seq_length: tokens of a sequence.
        batches: how many are read.
        batch_size: sequences of a batch.
        seed: of their order.
    """

    dataset: DatasetConfig
    tokenizer: TokenizerConfig
    seq_length: int
    batches: int = 64
    batch_size: int = 8
    seed: int = 1234


def prune_problems(teacher: GPTModelProvider, sizes: Sizes, calibration: Calibration, output: Path) -> Iterator[str]:
    """One line for each thing that cannot be, named as the command's options are."""
    ranks = os.environ.get("WORLD_SIZE", "1")
    if ranks != "1":
        yield (
            f"WORLD_SIZE={ranks}: one process prunes, at tensor and pipeline parallelism 1, since ModelOpt prunes no "
            "shards; start it without torchrun. The student is then read at any layout"
        )
    if problem := taken(output):
        yield f"--output {problem}"
    yield from size_problems(teacher, sizes)
    yield from _counts(calibration)
    yield from _length(teacher, calibration.seq_length)
    yield from _data(calibration.dataset)
    yield from _tokenizer(calibration)
    if teacher.hf_path is not None:
        yield from (f"{teacher.hf_path}: {problem}" for problem in folder_problems(Path(teacher.hf_path), teacher))


def _counts(calibration: Calibration) -> Iterator[str]:
    counts = {
        "--calibration-batches": calibration.batches,
        "--batch-size": calibration.batch_size,
        "--seq-length": calibration.seq_length,
    }
    yield from (f"{option} {value}: must be 1 or more" for option, value in counts.items() if value < 1)
    if not 0 <= calibration.seed < 2**31:
        yield f"--seed {calibration.seed}: must be at least 0 and less than 2^31"


def _length(teacher: GPTModelProvider, seq_length: int) -> Iterator[str]:
    limit, why = None, ""
    if teacher.position_embedding_type == "learned_absolute":
        limit, why = teacher.seq_length, "the teacher has embeddings of that many positions"
    elif teacher.hf_path is not None:
        limit, why = (
            read_architecture(teacher.hf_path).window,
            "layers of the teacher attend to no more (sliding_window)",
        )
    positions = teacher.max_position_embeddings
    if positions is not None and (limit is None or positions < limit):
        limit, why = positions, "the teacher was made for no more positions (max_position_embeddings)"
    if limit is not None and seq_length > limit:
        yield f"--seq-length {seq_length}: must be at most {limit}; {why}"


def _data(data: DatasetConfig) -> Iterator[str]:
    if data.text_path is not None and not os.path.isfile(data.text_path):
        yield f"--data {data.text_path}: there is no such file"
    if data.train_data_path is None:
        return
    blend = parse_blend(data.train_data_path, "--data")
    if isinstance(blend, Problem):
        yield str(blend)
        return
    for prefix in blend.prefixes:
        if missing := missing_files(prefix):
            yield (
                f"--data {prefix}: {' and '.join(missing)} not found; give the prefixes of tokenised files, made by "
                "`megatron-kd preprocess`, with or without weights, or one text file (.txt or .jsonl)"
            )


def _tokenizer(calibration: Calibration) -> Iterator[str]:
    path = calibration.tokenizer.tokenizer_model
    if calibration.tokenizer.tokenizer_type == "null":
        if calibration.dataset.text_path is not None:
            yield "--tokenizer: the teacher was trained without one, and text needs one; give --data as tokenised files"
    elif path is None:
        yield "--tokenizer: the teacher's folder names none; give the folder of the teacher's own"
    elif not os.path.exists(path):
        yield f"--tokenizer {path}: " + "; ".join(absent(path, what="folder or file")) + ", or give the teacher's own"
