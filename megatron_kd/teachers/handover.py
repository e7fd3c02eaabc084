"""Hidden states from the ranks that ran the teacher to the ranks whose losses read them.

One message a pair of ranks and step. S sequence, B micro-batch, G teacher hidden.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_kd.errors import LostRank
from megatron_kd.runtime.timeouts import wait_for
from megatron_kd.teachers.transfers import Exchange, Piece, StudentRank

PHASE = "teacher hand-over"

# By layer: one tensor a forward of the teacher, or one a micro-batch of the student; [S, B, G].
HiddenStates = dict[str, list[Tensor]]


@dataclass
class Handover:
    """Carries out an `Exchange` on this rank.

    Attributes:
        exchange: what goes where, equal on every rank.
        hidden_size: G.
        dtype, device: of the hidden states.
        bytes_sent: by this rank to others so far.
    """

    exchange: Exchange
    hidden_size: int
    dtype: torch.dtype
    device: torch.device
    bytes_sent: int = 0
    _me: StudentRank = field(init=False)
    _outgoing: dict[int, list[Piece]] = field(init=False)
    _incoming: dict[int, list[Piece]] = field(init=False)

    def __post_init__(self) -> None:
        exchange, rank = self.exchange, dist.get_rank()
        sources = range(exchange.grid.first_rank, exchange.grid.first_rank + exchange.grid.size)
        self._me = next(student for student in exchange.students if student.rank == rank)
        outgoing = {student.rank: list(exchange.pieces(rank, student)) for student in exchange.students}
        incoming = {source: list(exchange.pieces(source, self._me)) for source in sources}
        self._outgoing = {peer: pieces for peer, pieces in outgoing.items() if pieces}
        self._incoming = {peer: pieces for peer, pieces in incoming.items() if pieces}

    def __call__(self, produced: HiddenStates) -> HiddenStates:
        """Exchange one step's hidden states; every rank must call this.

        Args:
            produced: what the teacher's forwards put out on this rank; emptied on the way.

        Returns:
            What this rank's losses read, by micro-batch.

        Raises:
            LostRank: a rank does not answer.
        """
        rank = self._me.rank
        received = self._assemble(self._incoming.get(rank, []), produced)
        sent = {peer: self._packed(pieces, produced) for peer, pieces in sorted(self._outgoing.items()) if peer != rank}
        produced.clear()
        arriving = {
            peer: torch.empty(sum(map(self._elements, pieces)), dtype=self.dtype, device=self.device)
            for peer, pieces in sorted(self._incoming.items())
            if peer != rank
        }
        _exchange_buffers(sent, arriving)
        self.bytes_sent += sum(buffer.nbytes for buffer in sent.values())
        for peer, buffer in arriving.items():
            pieces = self._incoming[peer]
            for piece, part in zip(pieces, buffer.split(list(map(self._elements, pieces))), strict=True):
                received[piece.layer, piece.micro_batch].append((piece, part.view(*self._shape(piece))))
        return self._joined(received)

    def _assemble(self, own: list[Piece], produced: HiddenStates) -> dict[tuple[str, int], list[tuple[Piece, Tensor]]]:
        found = defaultdict(list)
        for piece in own:
            found[piece.layer, piece.micro_batch].append((piece, produced[piece.layer][piece.forward][piece.source]))
        return found

    def _packed(self, pieces: list[Piece], produced: HiddenStates) -> Tensor:
        return torch.cat([produced[piece.layer][piece.forward][piece.source].reshape(-1) for piece in pieces])

    def _joined(self, received: dict[tuple[str, int], list[tuple[Piece, Tensor]]]) -> HiddenStates:
        exchange = self.exchange
        positions, rows = exchange.seq_length // exchange.student_shards, exchange.micro_batch_size
        states: HiddenStates = {layer: [] for layer, _ in sorted(received)}
        for (layer, _), parts in sorted(received.items()):
            if len(parts) == 1:
                states[layer].append(parts[0][1].contiguous())
                continue
            whole = torch.empty(positions, rows, self.hidden_size, dtype=self.dtype, device=self.device)
            for piece, part in parts:
                whole[piece.target] = part
            states[layer].append(whole)
        return states

    def _shape(self, piece: Piece) -> tuple[int, int, int]:
        return (*piece.positions_and_rows, self.hidden_size)

    def _elements(self, piece: Piece) -> int:
        positions, rows = piece.positions_and_rows
        return positions * rows * self.hidden_size


def _exchange_buffers(sent: dict[int, Tensor], arriving: dict[int, Tensor]) -> None:
    operations = [dist.P2POp(dist.isend, buffer, peer) for peer, buffer in sent.items()]
    operations += [dist.P2POp(dist.irecv, buffer, peer) for peer, buffer in arriving.items()]
    if not operations:
        return
    waiting_for: int | None = None
    try:
        works = dist.batch_isend_irecv(operations)
        peers = [*sent, *arriving] if len(works) == len(operations) else [None] * len(works)
        for peer, work in zip(peers, works, strict=True):  # nccl gives one handle for all of them
            waiting_for = peer
            wait_for(work, dist.get_backend())
    except RuntimeError as error:
        raise LostRank(waiting_for, PHASE, str(error)) from error
