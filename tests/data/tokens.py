"""Tokenised files for the tests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder


def write_tokens(prefix: str | Path, documents: Sequence[Sequence[int]]) -> str:
    """Write a `.bin/.idx` pair as megatron-core does, and return its prefix."""
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=np.uint16)
    for ids in documents:
        builder.add_document(np.array(ids), [len(ids)])
    builder.finalize(f"{prefix}.idx")
    return str(prefix)
