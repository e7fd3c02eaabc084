"""A hand-over brings every micro-batch its hidden states, over whatever its buffers travel."""

from __future__ import annotations

import queue
import threading
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from megatron_kd.placement.grid import Grid
from megatron_kd.placement.wanted import WantedLayer
from megatron_kd.teachers.handover import Handover
from megatron_kd.teachers.transfers import Exchange, StudentRank
from tests.ranks import run_ranks

S, G, FINAL, MLP = 8, 3, "decoder.final_layernorm", "decoder.layers.0.mlp"

Received = list[dict[str, Tensor]]  # of one peer: by micro-batch, then layer


def exchange(students: tuple[StudentRank, ...], grid: Grid, *, student_shards: int = 1) -> Exchange:
    """Two micro-batches of two rows a replica of the student; the teacher runs three rows at a time."""
    last = max(student.stage for student in students)
    return Exchange(
        grid=grid,
        students=students,
        layers=(
            WantedLayer(FINAL, FINAL, grid.pp - 1, frozenset({last})),
            WantedLayer(MLP, MLP, 0, frozenset({0, last})),
        ),
        num_microbatches=2,
        micro_batch_size=2,
        teacher_micro_batch_size=3,
        seq_length=S,
        student_shards=student_shards,
        teacher_shards=1,
    )


REPLICAS = (StudentRank(0, replica=0, stage=0, shard=0), StudentRank(1, replica=1, stage=0, shard=0))
STAGES = (StudentRank(0, replica=0, stage=0, shard=0), StudentRank(1, replica=0, stage=1, shard=0))
SHARDS = (StudentRank(0, replica=0, stage=0, shard=0), StudentRank(1, replica=0, stage=0, shard=1))
EXCHANGES = {
    "DP2, a teacher outside": exchange(REPLICAS, Grid(1, 1, 1, first_rank=2)),
    "PP2, a teacher outside": exchange(STAGES, Grid(1, 1, 1, first_rank=2)),
    "DP2, a teacher of two stages, one of them outside": exchange(REPLICAS, Grid(1, 2, 1, first_rank=1)),
    "sequence parallel, two copies of the teacher": exchange(SHARDS, Grid(1, 1, 2, first_rank=1), student_shards=2),
}
PEERS = 3


def state(layer: str, sequence: int) -> Tensor:
    """The hidden states of one sequence of the global batch, [S, G]: each number is there once."""
    first = 1000 * sequence + 100_000 * (layer == MLP)
    return (first + torch.arange(S * G)).view(S, G).float()


def produced(of: Exchange, rank: int) -> dict[str, list[Tensor]]:
    """The outputs of the teacher's forwards on a peer, [S, B, G] each."""
    place = of.grid.coordinate(rank)
    if place is None:
        return {}
    share, rows = of.share(place.replica), of.teacher_micro_batch_size
    starts = range(share.start, share.stop, rows)
    return {
        layer.name: [torch.stack([state(layer.name, start + row) for row in range(rows)], dim=1) for start in starts]
        for layer in of.layers
        if layer.teacher_stage == place.stage
    }


def expected(of: Exchange, rank: int) -> Received:
    """The hidden states that a peer's losses read."""
    student = next((student for student in of.students if student.rank == rank), None)
    if student is None:
        return [{}, {}]

    def rows(layer: str, micro_batch: int) -> Tensor:
        first = student.replica * of.sequences_each + micro_batch * of.micro_batch_size
        whole = torch.stack([state(layer, first + row) for row in range(of.micro_batch_size)], dim=1)
        return whole.chunk(of.student_shards)[student.shard] if of.student_shards > 1 else whole

    here = [layer.name for layer in of.layers if student.stage in layer.student_stages]
    return [{layer: rows(layer, micro_batch) for layer in here} for micro_batch in range(of.num_microbatches)]


class ThroughQueues:
    """A `Transport` between threads of one process."""

    def __init__(self, rank: int, queues: dict[tuple[int, int], queue.Queue[Tensor]]) -> None:
        self.rank, self.bytes_sent, self._queues = rank, 0, queues

    def exchange(self, outgoing: Mapping[int, Tensor], incoming: Mapping[int, Tensor]) -> None:
        for peer, buffer in outgoing.items():
            self._queues[self.rank, peer].put(buffer.clone())
            self.bytes_sent += buffer.nbytes
        for peer, buffer in incoming.items():
            buffer.copy_(self._queues[peer, self.rank].get(timeout=30))


def handed_over(of: Exchange, transport: Any) -> Received:
    """One peer's part of the hand-over."""
    mine = produced(of, transport.rank)
    received = Handover(of, transport, G, torch.float32, torch.device("cpu"))(mine)
    assert not mine, "what has been sent takes no memory any longer"
    return received


def between_threads(of: Exchange) -> tuple[list[Received], list[int]]:
    queues: dict[tuple[int, int], queue.Queue[Tensor]] = defaultdict(queue.Queue)
    transports = [ThroughQueues(rank, queues) for rank in range(PEERS)]
    received: dict[int, Received] = {}
    threads = [
        threading.Thread(target=lambda t=transport: received.update({t.rank: handed_over(of, t)}))
        for transport in transports
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [received[rank] for rank in range(PEERS)], [transport.bytes_sent for transport in transports]


def in_a_part_of_the_world(exchanges: list[Exchange]) -> list[tuple[Received, int]] | None:
    """On a rank of 4: the hand-overs between the three ranks above the first."""
    import torch.distributed as dist

    from megatron_kd.teachers.transport import GroupTransport

    group = dist.new_group([1, 2, 3])
    if dist.get_rank() == 0:
        return None
    found = []
    for of in exchanges:
        transport = GroupTransport(group)
        found.append((handed_over(of, transport), transport.bytes_sent))
    return found


def assert_equal(received: Received, wanted: Received) -> None:
    assert [set(states) for states in received] == [set(states) for states in wanted]
    for states, others in zip(received, wanted, strict=True):
        for layer, hidden in states.items():
            assert torch.equal(hidden, others[layer]), layer


@pytest.mark.parametrize("name", EXCHANGES)
def test_threads_of_one_process_hand_over_what_each_reads(name: str) -> None:
    of = EXCHANGES[name]
    received, _ = between_threads(of)
    for rank in range(PEERS):
        assert_equal(received[rank], expected(of, rank))


def test_ranks_of_a_group_hand_over_what_threads_do() -> None:
    _, *ranks = run_ranks(1 + PEERS, in_a_part_of_the_world, list(EXCHANGES.values()))
    for index, of in enumerate(EXCHANGES.values()):
        received, sent = between_threads(of)
        for rank in range(PEERS):
            assert_equal(ranks[rank][index][0], received[rank])
            assert ranks[rank][index][1] == sent[rank]
        assert any(sent)
