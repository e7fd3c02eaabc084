"""How buffers travel between the peers of a hand-over: over a process group today, over anything that can do the same.

A hand-over knows peers by number only. Over a process group those are its ranks; a teacher in another process needs
numbers of its own and a `Transport`, no place in the student's world.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from megatron_kd.errors import LostRank
from megatron_kd.runtime.timeouts import wait_for

HAND_OVER = "teacher hand-over"


class Transport(Protocol):
    """Moves buffers between numbered peers.

    Attributes:
        rank: this peer's number.
        bytes_sent: by this peer so far.
    """

    rank: int
    bytes_sent: int

    def exchange(self, outgoing: Mapping[int, Tensor], incoming: Mapping[int, Tensor]) -> None:
        """Send each buffer of `outgoing` to its peer and fill each of `incoming` from its peer; return when done.

        A buffer is contiguous. Both peers of a message call this, with buffers of one shape and dtype.

        Raises:
            LostRank: a peer does not respond.
        """


class GroupTransport:
    """Messages over a process group, whose ranks are the peers."""

    def __init__(self, group: ProcessGroup) -> None:
        self.rank, self.bytes_sent = group.rank(), 0
        self._group = group

    def exchange(self, outgoing: Mapping[int, Tensor], incoming: Mapping[int, Tensor]) -> None:
        """See `Transport`."""
        operations = [self._operation(dist.isend, buffer, peer) for peer, buffer in outgoing.items()]
        operations += [self._operation(dist.irecv, buffer, peer) for peer, buffer in incoming.items()]
        if not operations:
            return
        waiting_for: int | None = None
        try:
            works = dist.batch_isend_irecv(operations)
            peers = [*outgoing, *incoming] if len(works) == len(operations) else [None] * len(works)
            for peer, work in zip(peers, works, strict=True):  # nccl gives one handle for all of them
                waiting_for = None if peer is None else dist.get_global_rank(self._group, peer)
                wait_for(work, dist.get_backend(self._group))
        except RuntimeError as error:
            raise LostRank(waiting_for, HAND_OVER, str(error)) from error
        self.bytes_sent += sum(buffer.nbytes for buffer in outgoing.values())

    def _operation(self, send_or_receive: object, buffer: Tensor, peer: int) -> dist.P2POp:
        return dist.P2POp(send_or_receive, buffer, group=self._group, group_peer=peer)
