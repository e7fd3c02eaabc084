"""The inputs of the fused loss as values: both models' final hidden states with their heads, and the tokens' weights.

Shapes: N tokens, V vocabulary (the logical size, also on a shard), H student hidden size, G teacher hidden size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_kd.errors import InputError
from megatron_kd.losses.cross_entropy import IGNORE_INDEX
from megatron_kd.losses.fused_heads import gather_sequence
from megatron_kd.losses.shard import VocabShard


class ModelHead(NamedTuple):
    """One model's final hidden states, and the output head that would turn them into logits.

    Attributes:
        hidden: [..., H], or [S/tp, ..., H] under sequence parallelism.
        weight: [V/tp, H], this rank's rows of the head.
        bias: [V/tp] or None.
        vocab_size: the true vocabulary size over all ranks; rows at or above it are padding. None: all rows are true.
    """

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None = None
    vocab_size: int | None = None

    @property
    def tokens(self) -> int:
        """Tokens whose hidden states are on this rank."""
        return self.hidden.shape[:-1].numel()

    def shard(self, group: dist.ProcessGroup | None) -> VocabShard:
        """This rank's share of the model's vocabulary."""
        return VocabShard.of(len(self.weight), group, self.vocab_size)


@dataclass(frozen=True)
class Heads:
    """Both models' sides of the fused loss, for the same tokens.

    At tp > 1 both weights must have as many rows, so that both shards hold the same ids. Where the vocabulary sizes
    differ the divergence is taken over the shared ids, the first min(student's, teacher's), each model's distribution
    renormalised over them.

    Attributes:
        student: gets gradients where its tensors require them.
        teacher: gets none; its hidden states may be whole or a sequence shard like the student's.
    """

    student: ModelHead
    teacher: ModelHead

    def shared_shard(self, group: dist.ProcessGroup | None) -> VocabShard:
        """This rank's share of the ids that both models have.

        Raises:
            InputError: the rows of the two heads stand for different ids.
        """
        student, teacher = self.student.shard(group), self.teacher.shard(group)
        rows, teacher_rows = len(self.student.weight), len(self.teacher.weight)
        if student.world > 1 and rows != teacher_rows:
            raise InputError(
                f"the student's head has {rows} rows on this rank and the teacher's {teacher_rows}: their shards hold "
                "different ids. Pad both heads to one width, and give both true vocabulary sizes"
            )
        return VocabShard.of(rows, group, min(student.vocab_size, teacher.vocab_size))

    def whole_teacher(self, tokens: int, group: dist.ProcessGroup | None) -> Tensor:
        """The teacher's hidden states of all `tokens` tokens, [N, G]; one collective where they are sequence shards.

        Raises:
            InputError: the teacher's tokens are not the student's.
        """
        hidden, count = self.teacher.hidden.detach(), self.teacher.tokens
        if count != tokens:
            if group is None or count * dist.get_world_size(group) != tokens:
                raise InputError(f"teacher_hidden {tuple(hidden.shape)} has {count} tokens, the student's {tokens}")
            hidden = gather_sequence(hidden, group)
        return hidden.reshape(tokens, -1)


class Labels(NamedTuple):
    """Label ids, and which of them are not the ignored label; [N] each."""

    ids: Tensor
    keep: Tensor


class TokenInputs(NamedTuple):
    """Factors of both losses in the total, float64 [N]; labels, None without an LM loss."""

    kd_factor: Tensor
    lm_factor: Tensor
    labels: Labels | None


@dataclass(frozen=True, kw_only=True)
class Weighting:
    """The terms of the total: the sum over tokens of token_weights * (kd_scale * divergence + lm_scale * lm).

    Attributes:
        token_weights: [...] of whole sequences; 0 masks a token. None is 1 for each token.
        labels: [...] of whole sequences, for the LM loss (at temperature 1, over all student ids); None for none.
        kd_scale, lm_scale: scales of the divergence and of the LM loss.
        ignore_index: label of tokens without an LM loss.
    """

    token_weights: Tensor | None = None
    labels: Tensor | None = None
    kd_scale: float | Tensor = 1.0
    lm_scale: float | Tensor = 1.0
    ignore_index: int = IGNORE_INDEX

    def per_token(self, tokens: int, device: torch.device) -> TokenInputs:
        """The inputs of each of `tokens` tokens, flattened.

        Raises:
            InputError: another number of weights or labels.
        """
        weights_N = _flat(self.token_weights, tokens, "token_weights")
        # float64, as all per-token numbers: beside V logits per token they cost nothing, and the total sums many.
        weights_N = torch.ones(tokens, dtype=torch.float64, device=device) if weights_N is None else weights_N.double()
        ids_N = _flat(self.labels, tokens, "labels")
        labels = None if ids_N is None else Labels(ids_N, ids_N != self.ignore_index)
        return TokenInputs(weights_N * self.kd_scale, weights_N * self.lm_scale, labels)


def _flat(values: Tensor | None, tokens: int, name: str) -> Tensor | None:
    """[N] of [...]."""
    if values is not None and values.numel() != tokens:
        raise InputError(f"{name} {tuple(values.shape)} must have one entry for each of the {tokens} tokens")
    return None if values is None else values.detach().reshape(-1)
