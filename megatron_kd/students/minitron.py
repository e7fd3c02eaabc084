"""Pruning a built model by the importance that its activations show (Minitron: Muralidharan et al. 2024).

ModelOpt measures and cuts. Activations x are averaged over the positions of a sequence and taken as an L2 norm over
sequences: importance_c = sqrt(sum_b (mean_s |x_sbc|)^2), summed over layers where layers share a size.

| size | x |
|---|---|
| hidden size | the outputs of the norms before attention and MLP, of all layers |
| FFN hidden size | the inputs of the MLP's second matrix, layer by layer |
| attention heads | the inputs of the attention's output projection, L2 norm over a head's channels; within its group |
| layers | 1 - cosine(input of the layer, its output), mean over tokens, summed over batches |
"""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from megatron_kd.config.gpt_model import explicit
from megatron_kd.errors import InputError
from megatron_kd.models.build_gpt import ModelShard, build_gpt
from megatron_kd.models.gpt import DistillableGPTModel
from megatron_kd.models.micro_batch import MicroBatch
from megatron_kd.runtime.modelopt import get_mcore_minitron_config, mtp
from megatron_kd.students.dynamic import prunable_layers, register_layers
from megatron_kd.students.pruned_sizes import Sizes

_LAYER = re.compile(r"decoder\.layers\.(\d+)\.(.+)")
_ANY_SIZE = {"hidden_size_divisor": 1, "ffn_hidden_size_divisor": 1, "num_layers_divisor": 1}


@dataclass(frozen=True)
class Depth:
    """Which layers were kept, in order, and the importance of every layer; both count from 0."""

    kept: list[int]
    scores: list[float]


def prunable_model(shard: ModelShard) -> DistillableGPTModel:
    """A model that `measure_and_cut` can prune, its weights not set."""
    return build_gpt(replace(shard, provider=explicit(shard.provider)), seed=None, layers=prunable_layers)


def measure_and_cut(
    model: DistillableGPTModel, sizes: Sizes, batches: Iterable[MicroBatch]
) -> tuple[dict[str, Tensor], Depth]:
    """Prune `model`, made by `prunable_model`, in place in its widths, and choose the layers to keep.

    Args:
        model: on one rank.
        sizes: that `size_problems` has nothing against.
        batches: to measure importance on; the tokens and position ids of each are read.

    Returns:
        the state of the pruned model, for one that `prunable_model` builds of `pruned_architecture`, and its layers.

    Raises:
        InputError: logits that are not finite, or a layer that changes nothing, by which ModelOpt cannot rank layers.
    """
    register_layers()

    def forward(prunable: Callable[..., Any]) -> None:
        for batch in batches:
            logits = prunable(batch.tokens, batch.position_ids, None)
            if not torch.isfinite(logits).all():
                raise InputError("the teacher's logits on the calibration data are not finite")

    # ModelOpt's own dropping of layers gathers a scalar, which gloo refuses, so it is asked to keep all of them.
    widths = {name: value for name, value in sizes.given().items() if name not in ("num_layers", "num_query_groups")}
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # it prints every tensor of importances
            _, found = mtp.prune(
                model,
                # Which sizes are good ones `size_problems` says, not a divisor.
                mode=[("mcore_minitron", get_mcore_minitron_config(**_ANY_SIZE))],
                constraints={"export_config": {**widths, "num_layers": model.config.num_layers}},
                dummy_input=None,
                config={"forward_loop": forward},
            )
    except AssertionError as error:
        raise InputError(f"ModelOpt cannot prune this model: {error}") from error
    scores = [float(found["layer_scores"][number]) for number in range(1, model.config.num_layers + 1)]
    ranked = sorted(range(len(scores)), key=lambda layer: (-scores[layer], layer))
    depth = Depth(sorted(ranked[: sizes.num_layers]), scores)
    return _with_layers(model.state_dict(), depth.kept), depth


def _with_layers(state: dict[str, Any], kept: list[int]) -> dict[str, Any]:
    """The part of a model's state that has the layers `kept`, renumbered."""
    number = {str(old): str(new) for new, old in enumerate(kept)}
    found = {}
    for name, value in state.items():
        match = _LAYER.fullmatch(name)
        if match is None:
            found[name] = value
        elif match[1] in number:
            found[f"decoder.layers.{number[match[1]]}.{match[2]}"] = value
    return found
