"""Reading a model's weights out of a checkpoint folder, at any parallel layout."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron.core.dist_checkpointing.mapping import ShardedTensor

from megatron_kd.checkpoints.contents import find_checkpoint
from megatron_kd.checkpoints.reading import Verified, load, mismatches, opened, refuse_other_model, verify
from megatron_kd.checkpoints.saved_state import read_run_state
from megatron_kd.models.fake_quantization import expect_input_scales, is_scale
from megatron_kd.models.gpt import DistillableGPTModel
from megatron_kd.models.weights import local_shards
from megatron_kd.runtime.together import on_rank_0, raised_together, rank_of_ranks


@dataclass(frozen=True)
class SavedWeights:
    """A checkpoint to read weights from, as often as wanted: its bytes are verified once.

    Attributes:
        checkpoint: where it lies and what it has.
        vocab_size: how many token ids its model has; None for a checkpoint that does not say.
        field: the configuration field it came from, for errors.
    """

    checkpoint: Verified
    vocab_size: int | None
    field: str

    def load_in_place(self, shards: Sequence[ShardedTensor], vocab_size: int | None) -> None:
        """Read tensors into the memory that `shards` have. Every rank must call this, with any shards.

        What is read is converted on the way, a tensor of the checkpoint at a time. `vocab_size` counts the model's
        token ids; tensors of another padded width are read as in `load_weights`.

        Raises:
            InputError: of another architecture or vocabulary; on every rank.
        """
        with raised_together():
            self._refuse_mismatch(shards, vocab_size)
        load({str(index): shard for index, shard in enumerate(shards)}, self.checkpoint, whole=False)

    def _refuse_mismatch(self, shards: Sequence[ShardedTensor], vocab_size: int | None) -> None:
        """Compare names and global shapes before any tensor is read, and report all differences."""

        def of_vocabulary(wanted: ShardedTensor, have: tuple[int, ...]) -> list[str]:
            return vocabulary_mismatch(wanted, have, self.vocab_size, vocab_size)

        refuse_other_model(
            mismatches(shards, self.checkpoint.shapes, of_vocabulary), f"{self.field}={self.checkpoint.folder}"
        )


def open_weights(path: str | Path, field: str) -> SavedWeights:
    """Find and verify a checkpoint to read weights from. Every rank must call this.

    Raises:
        InputError: no checkpoint there.
        CheckpointCorrupt: one that is not as it was written, or holds what a checkpoint must not; names the file.
    """
    folder = on_rank_0(lambda: find_checkpoint(path, field))
    checkpoint = verify(folder, need_manifest=False)
    if checkpoint.manifest is None and rank_of_ranks()[0] == 0:
        warnings.warn(f"{field}={folder}: has no manifest, so its integrity cannot be verified", stacklevel=2)
    return SavedWeights(checkpoint, checkpoint.state.vocab_size if checkpoint.state else None, field)


def load_weights(chunks: list[DistillableGPTModel], path: str | Path, field: str) -> None:
    """Load the model part of a checkpoint into this rank's chunks of a model, each rank its own shards.

    Embedding and head may have been saved at another padded width, since that is the larger of student's and
    teacher's: rows that the checkpoint does not have become 0, rows beyond the model's width are left out.

    Raises:
        InputError: no checkpoint there, or one of another architecture or vocabulary; the message lists what differs.
        CheckpointCorrupt: one that is not as it was written; on every rank, before any weight is changed.
    """
    shards = [shard for chunk in chunks for shard in local_shards(chunk)]
    open_weights(path, field).load_in_place(shards, chunks[0].true_vocab_size)


def load_scales(chunks: list[DistillableGPTModel], path: str | Path, field: str, quantization: str) -> None:
    """Load the scales of a student that was fake-quantised alike; of any other checkpoint, nothing.

    Args:
        chunks: this rank's, fake-quantised as `quantization`.
        path, field: as in `load_weights`, whose checkpoint this is.
    """
    saved = open_weights(path, field)
    if saved.checkpoint.state is None or saved.checkpoint.state.quantization != quantization:
        return
    for chunk in chunks:
        expect_input_scales(chunk)
    scales = [shard for chunk in chunks for shard in local_shards(chunk) if is_scale(shard.key)]
    saved.load_in_place(scales, chunks[0].true_vocab_size)


def vocabulary_mismatch(
    wanted: ShardedTensor, have: tuple[int, ...], saved_ids: int | None, vocab_size: int | None
) -> list[str]:
    """Why a tensor of the padded vocabulary does not fit a model of another padded width. Its other sizes agree.

    Args:
        wanted: the model's.
        have: global shape of the saved one.
        saved_ids, vocab_size: the token ids of the saved model and of this one, without padding; None: not known.
    """
    key, rows, want = wanted.key, have[0], wanted.global_shape[0]
    if vocab_size is None:
        return [] if rows == want else [f"{key} has {rows} rows, the model {want}"]
    if saved_ids is not None and saved_ids > vocab_size:
        return [f"{key} has {saved_ids} token ids, the model {vocab_size}; set its vocab_size={saved_ids}"]
    if rows < vocab_size:
        return [f"{key} has {rows} rows, too few for the model's {vocab_size} token ids"]
    if saved_ids is None and rows > want:  # what would be left out may be more than padding
        return [f"{key} has {rows} rows, the model {want}"]
    return []


def saved_vocab_size(folder: Path) -> int | None:
    """How many token ids the model of a checkpoint has; None for a checkpoint that does not say."""
    state = read_run_state(folder)
    return state.vocab_size if state else None


def saved_dtype(folder: Path) -> str:
    """The precision that the model of a checkpoint is in, such as "bfloat16"."""
    described = opened(folder).metadata.state_dict_metadata["embedding.word_embeddings.weight"]
    return str(described.properties.dtype).removeprefix("torch.")
