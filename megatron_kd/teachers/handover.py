"""Hidden states from the peers that ran the teacher to the peers whose losses read them.

One message per pair of peers and round. S sequence, B micro-batch, G teacher hidden.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from megatron_kd.teachers.transfers import Exchange, Piece
from megatron_kd.teachers.transport import Transport

# Outputs of a teacher's forwards, by layer: one [S, B, G] per forward.
Produced = dict[str, list[Tensor]]

_Parts = list[tuple[Piece, Tensor]]


@dataclass(frozen=True)
class Handover:
    """Carries out an `Exchange` on this peer, which may hold a part of the teacher, of the student or of both.

    Attributes:
        exchange: what goes where, equal on every peer.
        transport: between the peers that `exchange` numbers.
        hidden_size: G.
        dtype, device: of the hidden states.
    """

    exchange: Exchange
    transport: Transport
    hidden_size: int
    dtype: torch.dtype
    device: torch.device

    def __call__(self, produced: Produced) -> list[dict[str, Tensor]]:
        """Exchange one round's hidden states; every peer must call this.

        Args:
            produced: outputs of the teacher's forwards on this peer; cleared during the exchange to free memory.

        Returns:
            For each of this peer's micro-batches, what its losses read: [S, B, G] by layer.

        Raises:
            LostRank: a peer does not respond.
        """
        me = self.transport.rank
        own = self._incoming.get(me, [])
        received = [(piece, _cut(produced, piece)) for piece in own]
        outgoing = {peer: _packed(produced, pieces) for peer, pieces in self._outgoing.items() if peer != me}
        produced.clear()
        incoming = {
            peer: torch.empty(sum(map(self._elements, pieces)), dtype=self.dtype, device=self.device)
            for peer, pieces in self._incoming.items()
            if peer != me
        }
        self.transport.exchange(outgoing, incoming)
        for peer, buffer in incoming.items():
            pieces = self._incoming[peer]
            parts = buffer.split([self._elements(piece) for piece in pieces])
            received += [(piece, part.view(self._shape(piece))) for piece, part in zip(pieces, parts, strict=True)]
        return self._joined(received)

    @cached_property
    def _outgoing(self) -> dict[int, list[Piece]]:
        exchange, me = self.exchange, self.transport.rank
        found = {student.rank: list(exchange.pieces(me, student)) for student in exchange.students}
        return {peer: pieces for peer, pieces in sorted(found.items()) if pieces}

    @cached_property
    def _incoming(self) -> dict[int, list[Piece]]:
        exchange, grid = self.exchange, self.exchange.grid
        # None for a peer that holds a part of the teacher alone.
        me = next((student for student in exchange.students if student.rank == self.transport.rank), None)
        if me is None:
            return {}
        sources = range(grid.first_rank, grid.first_rank + grid.size)
        found = {source: list(exchange.pieces(source, me)) for source in sources}
        return {peer: pieces for peer, pieces in found.items() if pieces}

    def _joined(self, received: _Parts) -> list[dict[str, Tensor]]:
        parts: dict[tuple[int, str], _Parts] = defaultdict(list)
        for piece, part in received:
            parts[piece.micro_batch, piece.layer].append((piece, part))
        states: list[dict[str, Tensor]] = [{} for _ in range(self.exchange.num_microbatches)]
        for (micro_batch, layer), found in parts.items():
            states[micro_batch][layer] = self._whole(found)
        return states

    def _whole(self, parts: _Parts) -> Tensor:
        if len(parts) == 1:
            return parts[0][1].contiguous()
        positions = self.exchange.seq_length // self.exchange.student_shards
        shape = (positions, self.exchange.micro_batch_size, self.hidden_size)
        whole_SBG = torch.empty(shape, dtype=self.dtype, device=self.device)
        for piece, part in parts:
            whole_SBG[piece.target] = part
        return whole_SBG

    def _shape(self, piece: Piece) -> tuple[int, int, int]:
        return (*piece.positions_and_rows, self.hidden_size)

    def _elements(self, piece: Piece) -> int:
        positions, rows, hidden = self._shape(piece)
        return positions * rows * hidden


def _cut(produced: Produced, piece: Piece) -> Tensor:
    return produced[piece.layer][piece.forward][piece.source]


def _packed(produced: Produced, pieces: list[Piece]) -> Tensor:
    return torch.cat([_cut(produced, piece).reshape(-1) for piece in pieces])
