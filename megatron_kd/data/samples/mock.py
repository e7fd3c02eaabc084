"""Mock data that a language model can learn: samples of a fixed random bigram process.

Legend: S sequence length.
"""

from __future__ import annotations

import numpy as np
import torch
from torch.utils.data import Dataset

_ACTIVE_IDS = 256  # few enough that every bigram is seen often, whatever the vocabulary
_SUCCESSOR_CHANCES = (0.7, 0.2, 0.1)  # entropy 0.80 nats per token: the loss of a perfect model


class MockDataset(Dataset):
    """`num_samples` sequences of `seq_length` tokens; sample i is a pure function of (seed, split, i).

    Each token is followed by one of three others, with chances 0.7, 0.2 and 0.1. The process depends on the
    seed alone, so the splits differ in their samples and not in what there is to learn. The at most 256 ids
    in use are spread over the vocabulary, so each shard of a vocabulary-parallel head has some.
    """

    def __init__(self, *, vocab_size: int, seq_length: int, num_samples: int, seed: int, split: int = 0):
        self.seq_length, self.num_samples, self.seed, self.split = seq_length, num_samples, seed, split
        rng = np.random.default_rng(seed)
        active = min(vocab_size, _ACTIVE_IDS)
        self._ids = np.sort(rng.choice(vocab_size, size=active, replace=False))
        self._successors = rng.integers(active, size=(active, len(_SUCCESSOR_CHANCES))).tolist()

    def __len__(self) -> int:
        return self.num_samples

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """Tokens, labels, loss_mask and position_ids, each [S]."""
        if not 0 <= index < self.num_samples:
            raise IndexError(f"sample {index} of {self.num_samples}")
        rng = np.random.default_rng((self.seed, self.split, index))
        choices = rng.choice(len(_SUCCESSOR_CHANCES), size=self.seq_length, p=_SUCCESSOR_CHANCES).tolist()
        walk = [int(rng.integers(len(self._ids)))]
        for choice in choices:
            walk.append(self._successors[walk[-1]][choice])
        text = torch.from_numpy(self._ids[walk]).long()
        return {
            "tokens": text[:-1].contiguous(),
            "labels": text[1:].contiguous(),
            "loss_mask": torch.ones(self.seq_length),
            "position_ids": torch.arange(self.seq_length),
        }
