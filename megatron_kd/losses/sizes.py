"""How large the pieces are in which the losses work. Torch-free: a plan of a run's memory counts with the same numbers.

A *chunk* of tokens is the unit of the matrix products, a *tile* (a few rows of it) that of the elementwise work and of
the collectives, and a *block* is the rows of a low-precision head that are cast to float32 at a time.
"""

from __future__ import annotations

FLOAT32 = 4  # bytes

# Bytes of one model's chunk of float32 logits, and tokens beyond which a matrix product gains nothing.
_CPU_CHUNK = (32 << 20, 256)
_GPU_CHUNK = (1 << 29, 4096)
# Bytes of one buffer of a tile; three are in use.
_CPU_TILE = 4 << 20  # fits the cache: smaller ones pay for more thread barriers than the cache saves
_GPU_TILE = 1 << 27  # enough elements to fill the device, few enough launches
BLOCK_BYTES = 2 << 20  # 128 rows of a head 4096 wide: the products lose nothing against larger ones


def chunk_rows(width: int, device: str) -> int:
    """Tokens of a chunk of logits of `width` ids, this rank's part; `device` is a torch device's type."""
    chunk_bytes, most_tokens = _CPU_CHUNK if device == "cpu" else _GPU_CHUNK
    return max(1, min(most_tokens, chunk_bytes // (FLOAT32 * max(width, 1))))


def tile_bytes(device: str) -> int:
    """Maximum bytes of a tile's buffer, unless a single row is larger."""
    return _CPU_TILE if device == "cpu" else _GPU_TILE


def tile_rows(width: int, device: str) -> int:
    """Tokens whose float32 logits of `width` ids fill one buffer of a tile; at least 1."""
    return max(1, tile_bytes(device) // (FLOAT32 * max(width, 1)))


def block_rows(hidden_size: int) -> int:
    """Rows of a low-precision head that are cast at a time; at least 1."""
    return max(1, BLOCK_BYTES // (FLOAT32 * hidden_size))
