"""Reading a model's weights out of a checkpoint folder, at any parallel layout."""

from __future__ import annotations

from pathlib import Path

from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.core import CheckpointingException
from megatron.core.dist_checkpointing.mapping import ShardedTensor

from megatron_kd.config.saved import find_checkpoint
from megatron_kd.errors import InputError
from megatron_kd.models.fake_quantization import expect_input_scales, is_scale
from megatron_kd.models.gpt import DistillableGPTModel
from megatron_kd.models.weights import local_shards
from megatron_kd.runtime.agreement import raised_together


def load_weights(chunks: list[DistillableGPTModel], path: str | Path, field: str) -> None:
    """Load the model part of a checkpoint into this rank's chunks of a model, each rank its own shards.

    Embedding and head may have been saved at another padded width, since that is the larger of student's and
    teacher's: rows that the checkpoint does not have become 0, rows beyond the model's width are left out.

    Raises:
        InputError: no checkpoint there, or one of another architecture or vocabulary; the message lists what differs.
    """
    vocab_size = chunks[0].true_vocab_size
    load_in_place([shard for chunk in chunks for shard in local_shards(chunk)], path, field, vocab_size)


def load_scales(chunks: list[DistillableGPTModel], path: str | Path, field: str, quantization: str) -> None:
    """Load the scales of a student that was fake-quantised alike; of any other checkpoint, nothing.

    Args:
        chunks: this rank's, fake-quantised as `quantization`.
        path, field: as in `load_weights`, whose checkpoint this is.
    """
    if saved_quantization(find_checkpoint(path, field)) != quantization:
        return
    for chunk in chunks:
        expect_input_scales(chunk)
    scales = [shard for chunk in chunks for shard in local_shards(chunk) if is_scale(shard.key)]
    load_in_place(scales, path, field, chunks[0].true_vocab_size)


def load_in_place(shards: list[ShardedTensor], path: str | Path, field: str, vocab_size: int | None) -> None:
    """Read tensors of a checkpoint into the memory that `shards` have. Every rank must call this, with any shards.

    What is read is converted on the way, a tensor of the checkpoint at a time. `vocab_size` counts the model's token
    ids; tensors of another padded width are read as in `load_weights`.

    Raises:
        InputError: no checkpoint there, or one of another architecture or vocabulary; on every rank.
    """
    with raised_together():
        folder = find_checkpoint(path, field)
        _refuse_mismatch(shards, folder, field, vocab_size)
    state = {str(index): shard for index, shard in enumerate(shards)}
    try:
        dist_checkpointing.load(state, str(folder), validate_access_integrity=False)
    except CheckpointingException as error:
        raise InputError(f"{field}={folder}: {error}") from error


def saved_vocab_size(folder: Path) -> int | None:
    """How many token ids the model of a checkpoint has; None for a checkpoint that does not say."""
    size: int | None = dist_checkpointing.load_common_state_dict(str(folder)).get("run", {}).get("vocab_size")
    return size


def saved_quantization(folder: Path) -> str | None:
    """The fake quantisation that the model of a checkpoint was trained with, if any."""
    name: str | None = dist_checkpointing.load_common_state_dict(str(folder)).get("run", {}).get("quantization")
    return name


def saved_dtype(folder: Path) -> str:
    """The precision that the model of a checkpoint is in, such as "bfloat16"."""
    shards = dist_checkpointing.load_tensors_metadata(str(folder))
    dtype = shards["embedding.word_embeddings.weight"].dtype
    return str(dtype).removeprefix("torch.")


def _refuse_mismatch(shards: list[ShardedTensor], folder: Path, field: str, vocab_size: int | None) -> None:
    """Compare names and global shapes before any tensor is read, and report all differences."""
    saved, saved_ids = dist_checkpointing.load_tensors_metadata(str(folder)), saved_vocab_size(folder)
    problems = []
    for wanted in shards:
        if wanted.key not in saved:
            problems.append(f"{wanted.key} is missing")
            continue
        have, want = tuple(saved[wanted.key].global_shape), tuple(wanted.global_shape)
        # megatron-core lets tensors of the padded vocabulary differ in their rows.
        if wanted.allow_shape_mismatch and vocab_size is not None and have[1:] == want[1:]:
            problems += _vocabulary_mismatch(wanted.key, have[0], want[0], saved_ids, vocab_size)
        elif have != want:
            problems.append(f"{wanted.key} has shape {have}, the model wants {want}")
    if problems:
        unique = list(dict.fromkeys(problems))
        more = f"; and {len(unique) - 5} more" if len(unique) > 5 else ""
        raise InputError(f"{field}={folder} holds another model: {'; '.join(unique[:5])}{more}")


def _vocabulary_mismatch(key: str, have: int, want: int, saved_ids: int | None, vocab_size: int) -> list[str]:
    """Why `have` saved rows, `saved_ids` of them tokens, cannot serve a model of `vocab_size` ids in `want` rows."""
    if saved_ids is not None and saved_ids > vocab_size:
        return [f"{key} has {saved_ids} token ids, the model {vocab_size}; set its vocab_size={saved_ids}"]
    if have < vocab_size:
        return [f"{key} has {have} rows, too few for the model's {vocab_size} token ids"]
    if saved_ids is None and have > want:  # what would be left out may be more than padding
        return [f"{key} has {have} rows, the model {want}"]
    return []
