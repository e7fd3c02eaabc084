"""The one GPT class of students and teachers."""

from __future__ import annotations

from megatron.core.models.gpt import GPTModel
from torch import Tensor

from megatron_kd.losses.cross_entropy import vocab_parallel_cross_entropy


class DistillableGPTModel(GPTModel):
    """megatron-core's GPTModel, with a language-modelling loss that leaves the padded vocabulary slots out.

    `forward` stays inherited: ModelOpt recognises a model class by it.
    """

    true_vocab_size: int | None = None

    def compute_language_model_loss(self, labels: Tensor, logits: Tensor) -> Tensor:
        """Cross entropy per token.

        Args:
            labels: [B, S] token ids.
            logits: [S, B, V] sharded over the vocabulary.

        Returns:
            [B, S] losses in fp32.
        """
        losses_SB = vocab_parallel_cross_entropy(
            logits, labels.transpose(0, 1), group=self.pg_collection.tp, vocab_size=self.true_vocab_size
        )
        return losses_SB.transpose(0, 1).contiguous()
