"""Fake quantisation of a student by ModelOpt: its linear layers compute with values that a number format can hold.

Weights are stored and trained in full precision. In the forward pass each weight, and in some formats each input, is
rounded to the format and scaled back; the backward ignores the rounding (ModelOpt's straight-through estimator). Scales
are set by the largest magnitude: of the initial weights, and of the inputs over the calibration batches. They are
`_amax` buffers, part of the model's state, and are not trained.

Embedding, output head and norms keep full precision, as in ModelOpt's own configurations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from megatron.core.dist_checkpointing.mapping import ShardedTensor
from megatron.core.transformer.mlp import apply_swiglu_sharded_factory
from torch import nn

from megatron_kd.errors import InputError
from megatron_kd.runtime.modelopt import max_calibrate, mtq, mtq_nn

# All use the "max" algorithm, the only one that `max_calibrate` implements.
_MODELOPT_CONFIGS: dict[str, dict[str, Any]] = {
    "int8": mtq.INT8_DEFAULT_CFG,
    "int8_weight_only": mtq.INT8_WEIGHT_ONLY_CFG,
    "fp8": mtq.FP8_DEFAULT_CFG,
    "int4_weight_only": mtq.INT4_BLOCKWISE_WEIGHT_ONLY_CFG,
    "nvfp4": mtq.NVFP4_DEFAULT_CFG,
}
_LINEARS = ("linear_qkv", "linear_proj", "linear_fc1", "linear_fc2")
_GATED_SCALES = "mlp.linear_fc1.weight_quantizer._amax"


def fake_quantise(model: nn.Module, quantization: str, device: torch.device) -> None:
    """Add quantisers to each linear layer of `model`'s transformer block, with scales from its current weights.

    Until `calibrate_inputs` or a checkpoint sets the scales of inputs, each input is scaled by itself. Ranks that share
    a layer must call this together.

    Args:
        model: this rank's part of a GPT model with its weights; changed in place.
        quantization: see `GPTModelProvider.quantization`.
        device: the model's.

    Raises:
        InputError: nvfp4 on a CPU, for which ModelOpt has no kernel.
    """
    if quantization == "nvfp4" and device.type != "cuda":
        raise InputError(
            "model.quantization=nvfp4 needs a CUDA device, where ModelOpt has its kernels; set model.quantization to "
            "int8, fp8 or int4_weight_only"
        )
    for parent in list(model.decoder.modules()):
        for name in _LINEARS:
            linear = getattr(parent, name, None)
            if linear is not None:
                setattr(parent, name, mtq_nn.QuantModuleRegistry.convert(linear))
    settings = mtq.config.QuantizeConfig(**_MODELOPT_CONFIGS[quantization])  # adds defaults
    mtq.set_quantizer_by_cfg(model, settings.quant_cfg)
    max_calibrate(model)


def calibrate_inputs(models: list[Any], forward: Callable[[], Any]) -> None:
    """Set the scales of inputs from the unquantised inputs that `forward` causes, one scale for all ranks.

    Args:
        models: this rank's chunks of the student, wrapped or not.
        forward: runs them on the calibration batches.
    """
    max_calibrate(nn.ModuleList(models), lambda _: forward())


def expect_input_scales(model: nn.Module) -> None:
    """Create the scales of inputs for a checkpoint to fill; until then they are NaN, so that a missing one shows."""
    for quantiser in _input_quantisers(model):
        if quantiser.amax is None:
            weight = next(model.parameters())
            quantiser.amax = torch.full((), torch.nan, dtype=weight.dtype, device=weight.device)


def needs_calibration(models: list[Any]) -> bool:
    """Whether a layer of `models` quantises its inputs with a scale that is not set yet."""
    return any(quantiser.amax is None for model in models for quantiser in _input_quantisers(model))


def is_scale(key: str) -> bool:
    """Whether a checkpoint's tensor is a scale."""
    return key.endswith("_quantizer._amax")


def split_gated_scales(state: dict[str, Any]) -> None:
    """Split the scales of gated layers as their weights are split, into those of gate and up projection.

    A rank holds a share of each, so another tensor-parallel size would read unsplit scales in another order. ModelOpt
    shards the scales too, but as one contiguous range of rows.

    Args:
        state: the result of `sharded_state_dict` of a model with `gated_linear_unit`; changed in place.
    """
    for key, value in state.items():
        if key.endswith(_GATED_SCALES) and isinstance(value, ShardedTensor) and len(value.local_shape) > 1:
            layers = tuple(
                (axis, value.global_offset[axis], value.global_shape[axis]) for axis in range(value.prepend_axis_num)
            )
            state[key] = apply_swiglu_sharded_factory(value, layers)


def _input_quantisers(model: nn.Module) -> Iterator[mtq_nn.TensorQuantizer]:
    """The active quantisers of inputs whose scale is calibrated, not computed for each input."""
    for module in model.modules():
        if isinstance(module, mtq_nn.QuantModule):
            quantiser = module.input_quantizer
            if quantiser.is_enabled and not quantiser._dynamic:
                yield quantiser
