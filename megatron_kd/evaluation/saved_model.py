"""A model on disk: a checkpoint of megatron_kd or a Hugging Face folder; one place tells which."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from megatron_kd.checkpoints.contents import architecture_of
from megatron_kd.config.gpt_model import GPTModelProvider
from megatron_kd.errors import InputError
from megatron_kd.huggingface.architecture import read_architecture
from megatron_kd.huggingface.find_model import find_model


@dataclass(frozen=True)
class SavedModel:
    """Where a model lies: a Hugging Face folder, or the folder of one checkpoint, `.../iter_0000100`."""

    folder: Path
    is_huggingface: bool

    def provider(self, seq_length: int | None = None) -> GPTModelProvider:
        """The model, with its weights from here, for sequences of `seq_length`.

        None is what a checkpoint's run had, and the default for a Hugging Face folder, or less where its model has
        fewer positions. A Hugging Face folder's own architecture is filled in when the configuration is made.

        Raises:
            InputError: a checkpoint that does not say what model it holds.
        """
        if self.is_huggingface:
            provider = GPTModelProvider(hf_path=str(self.folder))
        else:
            provider = architecture_of(self.folder)
            provider.checkpoint = str(self.folder)
        if seq_length is not None:
            provider.seq_length = seq_length
        elif self.is_huggingface:
            provider.seq_length = min(provider.seq_length, self._longest())
        return provider

    def _longest(self) -> int:
        """The longest sequence of a Hugging Face folder's model."""
        try:
            found = read_architecture(self.folder)
        except InputError:
            return GPTModelProvider().seq_length  # reported when the configuration is made
        positions: int = found.fields["max_position_embeddings"]
        return positions if found.window is None else min(positions, found.window)


def saved_model(path: str | Path, field: str) -> SavedModel:
    """The model that `path` means: a Hugging Face folder, a checkpoint, or the newest in a run's folder.

    Args:
        path: a folder.
        field: what errors call the path's origin.

    Raises:
        InputError: there is no model.
    """
    return SavedModel(*find_model(path, field))
