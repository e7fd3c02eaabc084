"""The order in which text is read: sample i is the same however many samples a run has.

The epochs follow on each other in one stream of tokens; in each the documents have an order of their own. Sample i has
the tokens i*S to (i+1)*S of the stream, the last of which is a label alone. It belongs to the epoch that this label is
in, and the samples of an epoch are shuffled among themselves. All of it follows from the seed and the epoch, so a
longer run only adds epochs.

The first epoch is megatron-core's own. megatron-core shuffles the documents, and the samples, of all epochs of a run
together, except for the last epoch where little of it is read.

Legend: S sequence length, T tokens of an epoch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Indices:
    """megatron-core's three indices of a dataset.

    Attributes:
        documents: in the order of the stream, int32.
        samples: the place in `documents` and the offset in tokens at which each sample begins, [samples + 1, 2].
        shuffle: which sample is read at each place.
    """

    documents: np.ndarray
    samples: np.ndarray
    shuffle: np.ndarray


def build_indices(documents: np.ndarray, lengths: np.ndarray, num_samples: int, S: int, seed: int) -> Indices:
    """The indices of as many whole epochs as `num_samples` take.

    Args:
        documents: the numbers of the documents that are read.
        lengths: of all documents, in tokens, int32; those that are read have one token or more in all.
        num_samples: of `S` tokens and a label.
        seed: of the order.
    """
    from megatron.core.datasets import helpers

    T = int(lengths[documents].sum(dtype=np.int64))
    epochs = -(-(num_samples * S + 1) // T)
    ends = [samples_until(epoch, T, S) for epoch in range(epochs + 1)]
    dtype = np.uint32 if ends[-1] < np.iinfo(np.uint32).max - 1 else np.int64
    order = np.tile(documents.astype(np.int32), epochs)
    shuffle = np.arange(ends[-1], dtype=dtype)
    for epoch in range(epochs):
        generator = _generator(seed, epoch)
        generator.shuffle(order[epoch * len(documents) : (epoch + 1) * len(documents)])
        generator.shuffle(shuffle[ends[epoch] : ends[epoch + 1]])
    samples = helpers.build_sample_idx(np.ascontiguousarray(lengths), order, S, epochs, T)
    return Indices(order, samples, shuffle)


def samples_until(epoch: int, T: int, S: int) -> int:
    """The samples of all epochs before `epoch`: those whose last label is in them."""
    return max((epoch * T - 1) // S, 0)


def _generator(seed: int, epoch: int) -> np.random.RandomState | np.random.Generator:
    return np.random.RandomState(seed) if epoch == 0 else np.random.default_rng((seed, epoch))
