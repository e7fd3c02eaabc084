"""A teacher with a parallel layout of its own: what `balanced`, `gpu0` and `cpu` have in common.

At the beginning of a step its copies run the whole global batch forward, each a share of the sequences, and the hidden
states that the student's losses read go to the ranks that read them; in rounds of a few micro-batches, so that no rank
holds what others will read of a whole batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

import torch
import torch.distributed as dist
from torch import Tensor, nn

from megatron_kd.models.micro_batch import MicroBatch
from megatron_kd.runtime.layout import Layout
from megatron_kd.teachers.body import Inputs, TeacherBody
from megatron_kd.teachers.handover import Handover
from megatron_kd.teachers.protocol import Targets
from megatron_kd.teachers.proxy import TeacherProxy


class PlacedTeacher:
    """See `Teacher`.

    Args:
        strategy: its name.
        body: this rank's part of the teacher; None on a rank without one.
        proxies: one for each chunk of the student on this rank that a loss reads from.
        rounds: of a step; each carries the hidden states of its micro-batches.
        layout: the student's.
    """

    in_student_pipeline = False

    def __init__(
        self,
        strategy: str,
        body: TeacherBody | None,
        proxies: dict[int, TeacherProxy],
        rounds: list[Handover],
        layout: Layout,
    ) -> None:
        self.strategy, self.hidden_size = strategy, rounds[0].hidden_size
        self.body, self.rounds = body, rounds
        self._proxies, self._layout = proxies, layout

    def deliver(self, micro_batches: Sequence[MicroBatch]) -> list[Targets]:
        """See `Teacher`.

        Raises:
            LostRank: a rank does not respond.
        """
        targets: list[Targets] = []
        ahead = iter(micro_batches)
        for handover in self.rounds:
            some = list(islice(ahead, handover.exchange.num_microbatches))
            sequences = Inputs(
                tokens=self._gathered([batch.tokens for batch in some]),
                position_ids=self._gathered([batch.position_ids for batch in some]),
            )
            produced = self.body(_share(handover, sequences)) if self.body is not None else {}
            received = handover(produced)
            targets += [Targets(batch.sample_ids, states) for batch, states in zip(some, received, strict=True)]
        return targets

    def module(self, chunk: int) -> nn.Module | None:
        """See `Teacher`."""
        return self._proxies.get(chunk)

    def name_in_module(self, layer: str) -> str | None:
        """Proxies go by the names of the whole teacher."""
        return layer

    @property
    def bytes_sent(self) -> int:
        """By this rank to others in hand-overs so far."""
        return self.rounds[0].transport.bytes_sent

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """See `Teacher`."""
        if self.body is not None:
            yield from ((name, p) for name, p in self.body.model.named_parameters() if not p.is_meta)
        for proxy in self._proxies.values():
            if proxy.head is not None:
                yield "output_layer.weight", proxy.head.weight

    def _gathered(self, parts: list[Tensor]) -> Tensor:
        """Of this rank's [B, S] each: those of the global batch, in the order in which `Exchange` numbers them."""
        mine = torch.cat(parts)
        everyones = [torch.empty_like(mine) for _ in range(self._layout.dp.size)]
        dist.all_gather(everyones, mine, group=self._layout.dp.group)
        return torch.cat(everyones)


def _share(handover: Handover, sequences: Inputs) -> list[Inputs]:
    """The micro-batches of this rank's copy of the teacher; the last one repeats its last sequence if short."""
    exchange = handover.exchange
    place = exchange.grid.coordinate(handover.transport.rank)
    assert place is not None
    share, size = exchange.share(place.replica), exchange.teacher_micro_batch_size
    rows = torch.arange(share.start, share.start + exchange.forwards(place.replica) * size)
    rows = rows.clamp(max=max(share.stop - 1, 0)).to(sequences.tokens.device)
    return [Inputs(*(values[some] for values in sequences)) for some in rows.split(size) if len(some)]
