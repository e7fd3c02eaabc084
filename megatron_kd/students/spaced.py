"""Which of a teacher's layers a student of fewer layers starts from. Nothing here needs torch."""

from __future__ import annotations


def spaced_layers(count: int, of: int) -> list[int]:
    """`count` of the layers 0 to `of` - 1, ascending: the first, the last, and those between at even distances.

    Layer i of the student is layer round(i (of - 1) / (count - 1)) of the teacher, halves rounded up. For 6 of 12 these
    are 0, 2, 4, 7, 9 and 11, which DistilBERT is known to start from. A single layer is the first.

    Args:
        count: from 1 to `of`.
        of: the teacher's number of layers.
    """
    steps = count - 1
    return [(2 * layer * (of - 1) + steps) // (2 * steps) for layer in range(count)] if steps else [0]
