"""The one GPT class of students and teachers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from megatron.core.dist_checkpointing.mapping import ShardedStateDict
from megatron.core.models.gpt import GPTModel
from torch import Tensor, nn

from megatron_kd.errors import InputError
from megatron_kd.losses.cross_entropy import vocab_parallel_cross_entropy
from megatron_kd.losses.faults import Faults
from megatron_kd.models.fake_quantization import split_gated_scales


class Headed(Protocol):
    """A model's last stage, which has an output head, or the proxy of a teacher's.

    Attributes:
        true_vocab_size: number of token ids in use; the slots above are padding and take no part in any loss.
    """

    true_vocab_size: int | None

    def head_weight(self) -> Tensor:
        """This rank's rows of the head, [V, H] sharded over V."""

    def logits(self, hidden_SBH: Tensor) -> Tensor:
        """Logits of the final hidden states, [S, B, V] sharded over V, always for the whole sequence.

        Under sequence parallelism, it gathers the hidden states first.
        """


# A function of a last stage and its final hidden states [S, B, H] whose result is the model's output, not logits.
HeadFunction = Callable[[Any, Tensor], Any]


class DistillableGPTModel(GPTModel):
    """megatron-core's GPTModel, with a replaceable output layer.

    Attributes:
        true_vocab_size: number of token ids in use; the slots above are padding and take no part in any loss.
        head_function: if set, called instead of the output layer; no logits are computed unless it does.

    `forward` stays inherited: ModelOpt recognises a model class by it.
    """

    true_vocab_size: int | None = None
    head_function: HeadFunction | None = None

    def _postprocess(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        if self.head_function is None or not self.post_process:
            return super()._postprocess(hidden_states, *args, **kwargs)
        return self.head_function(self, hidden_states)

    def logits(self, hidden_SBH: Tensor) -> Tensor:
        """See `Headed`. It calls the output layer, for hooks to see."""
        tied = self.share_embeddings_and_output_weights
        return self.output_layer(hidden_SBH, weight=self.shared_embedding_or_output_weight() if tied else None)[0]

    def head_weight(self) -> Tensor:
        """This rank's rows of the output head, [V, H] sharded over V, up to date."""
        # A distributed optimizer gathers updated parameters just in time, in pre-forward hooks of the modules that own
        # them. A head function does not call the output layer, so its hooks are run here.
        for hook in self.output_layer._forward_pre_hooks.values():
            hook(self.output_layer, ())
        if self.share_embeddings_and_output_weights:
            return self.shared_embedding_or_output_weight()
        return self.output_layer.weight

    def sharded_state_dict(self, *args: Any, **kwargs: Any) -> ShardedStateDict:
        """This rank's part of a checkpoint by the names of its tensors; see megatron-core."""
        state = super().sharded_state_dict(*args, **kwargs)
        if self.config.gated_linear_unit:
            split_gated_scales(state)
        return state

    def compute_language_model_loss(self, labels: Tensor, logits: Tensor) -> Tensor:
        """Cross entropy per token, as megatron-core asks for it; see `label_losses`."""
        return self.label_losses(labels, logits)

    def label_losses(self, labels_BS: Tensor, logits_SBV: Tensor, faults: Faults | None = None) -> Tensor:
        """Cross entropy per token.

        Args:
            labels_BS: token ids.
            logits_SBV: sharded over the vocabulary.
            faults: where to note what is wrong with the numbers; None raises on this rank alone.

        Returns:
            [B, S] losses in float32.
        """
        losses_SB = vocab_parallel_cross_entropy(
            logits_SBV,
            labels_BS.transpose(0, 1),
            group=self.pg_collection.tp,
            vocab_size=self.true_vocab_size,
            faults=faults,
        )
        return losses_SB.transpose(0, 1).contiguous()


def no_head(model: Headed, hidden_SBH: Tensor) -> Tensor:
    """A `HeadFunction` of a model whose hidden states are all that is wanted."""
    return hidden_SBH.new_zeros(())


def hidden_states_of(output: Any) -> Tensor:
    """A layer's hidden states, [S, B, H]; layers that also return a bias or a context output a tuple."""
    hidden_SBH: Tensor = output[0] if isinstance(output, tuple) else output
    return hidden_SBH


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
