"""The one GPT class of students and teachers."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from megatron.core.dist_checkpointing.mapping import ShardedStateDict
from megatron.core.models.gpt import GPTModel
from torch import Tensor, nn

from megatron_kd.errors import InputError
from megatron_kd.losses.cross_entropy import vocab_parallel_cross_entropy
from megatron_kd.losses.faults import Faults
from megatron_kd.models.fake_quantization import split_gated_scales


class Headed(Protocol):
    """What has an output head: a model's last stage, or what stands in for a teacher's."""

    def head_weight(self) -> Tensor:
        """This rank's rows of the head, [V, H] sharded over V."""


class HeadFunction(Protocol):
    """What the last stage does with its final hidden states instead of computing logits."""

    def __call__(
        self, model: Headed, hidden_SBH: Tensor, labels_BS: Tensor | None, loss_mask_BS: Tensor | None, /
    ) -> Tensor:
        """Return what the model's forward is to return."""


class DistillableGPTModel(GPTModel):
    """megatron-core's GPTModel, whose last stage can be told what to do with its final hidden states.

    Attributes:
        true_vocab_size: number of token ids in use; the slots above are padding and take no part in any loss.
        faults: where the model's losses note what is wrong with their numbers; unset, they raise on this rank alone.
        head_function: called in place of the output layer, where set; then logits come to be only if it makes them.
        skip_lm_loss: whether the language-modelling loss is left out, as zeros, in training.

    `forward` stays inherited: ModelOpt recognises a model class by it.
    """

    true_vocab_size: int | None = None
    faults: Faults | None = None
    head_function: HeadFunction | None = None
    skip_lm_loss: bool = False

    def _postprocess(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self.head_function is None or not self.post_process:
            return super()._postprocess(hidden_states, *args, **kwargs)
        return self.head_function(self, hidden_states, kwargs["labels"], kwargs["loss_mask"])

    def head_weight(self) -> Tensor:
        """This rank's rows of the output head, [V, H] sharded over V, ready to be read."""
        # Where parameters are gathered just in time, it is by hooks of the modules that own them, and a head
        # function does not call the output layer.
        for hook in self.output_layer._forward_pre_hooks.values():
            hook(self.output_layer, ())
        if self.share_embeddings_and_output_weights:
            return self.shared_embedding_or_output_weight()
        return self.output_layer.weight

    def sharded_state_dict(self, *args: Any, **kwargs: Any) -> ShardedStateDict:
        """What a checkpoint holds of this model, by the names of its tensors; see megatron-core."""
        state = super().sharded_state_dict(*args, **kwargs)
        if self.config.gated_linear_unit:
            split_gated_scales(state)
        return state

    def compute_language_model_loss(self, labels: Tensor, logits: Tensor) -> Tensor:
        """Cross entropy per token.

        Args:
            labels: [B, S] token ids.
            logits: [S, B, V] sharded over the vocabulary.

        Returns:
            [B, S] losses in fp32.
        """
        if self.skip_lm_loss and self.training:
            return torch.zeros_like(labels, dtype=torch.float32)
        losses_SB = vocab_parallel_cross_entropy(
            logits,
            labels.transpose(0, 1),
            group=self.pg_collection.tp,
            vocab_size=self.true_vocab_size,
            faults=self.faults,
        )
        return losses_SB.transpose(0, 1).contiguous()


def find_layer(model: nn.Module, local_name: str, name: str, field: str) -> nn.Module:
    """The submodule `local_name`; if there is none, an InputError that lists its nearest ancestor's children."""
    module = model
    for part in local_name.split("."):
        children = dict(module.named_children())
        if part not in children:
            raise InputError(
                f"model.kd_config.intermediate_layer_pairs: {field} has no layer {name}; "
                f"{part!r} is not one of {', '.join(children)}"
            )
        module = children[part]
    return module
