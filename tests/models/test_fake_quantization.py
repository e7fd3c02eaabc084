"""Fake quantisation: what a quantised layer computes, its gradient, and what is left alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from megatron_kd.config.gpt_model import GPTModelProvider
from tests.ranks import RankFailed, run_ranks

MODEL = GPTModelProvider(
    num_layers=2, hidden_size=128, ffn_hidden_size=128, num_attention_heads=4, seq_length=8, vocab_size=250,
    init_method_std=0.1,
)  # fmt: skip


def rounded(values: Tensor, largest: Tensor, steps: int) -> Tensor:
    """The nearest of 2 `steps` + 1 evenly spaced values up to `largest`, in float64."""
    scale = largest.double() / steps
    return (values.double() / scale).round() * scale


def of_the_layer(quantization: str) -> dict[str, Tensor]:
    """On a rank: one layer's weight, input, output and gradients, its model's linears and what the head has."""
    from megatron_kd.models.fake_quantization import calibrate_inputs, fake_quantise, needs_calibration
    from megatron_kd.runtime.start import running_ranks

    with running_ranks(tensor_model_parallel_size=1, pipeline_model_parallel_size=1, seed=1) as layout:
        model = MODEL.provide(layout, padded_vocab_size=256, seed=3)
        before = {name: value.clone() for name, value in model.named_parameters()}
        fake_quantise(model, quantization, layout.device)
        tokens = torch.randint(0, 250, (2, 8), generator=torch.Generator().manual_seed(1))
        measures = needs_calibration([model])
        with torch.no_grad():
            calibrate_inputs([model], lambda: model(tokens, torch.arange(8).expand(2, 8), None))
        assert not needs_calibration([model])
        assert all(torch.equal(value, before[name]) for name, value in model.named_parameters())
        linear = model.decoder.layers[0].mlp.linear_fc2
        amax = linear.input_quantizer.amax
        hidden = torch.randn(8, 2, 128, generator=torch.Generator().manual_seed(2))
        hidden = (hidden if amax is None else hidden * amax / 2).requires_grad_()  # some of it is beyond the range
        output, _ = linear(hidden)
        output.sum().backward()
        scales = [name for name, _ in model.named_buffers() if name.endswith("_amax")]
        return {
            "weight": linear.weight.detach(), "hidden": hidden.detach(), "output": output.detach(),
            "hidden_grad": hidden.grad, "weight_grad": linear.weight.grad,
            "amax": torch.tensor(torch.nan) if amax is None else amax,
            "measures": torch.tensor(measures), "scales": torch.tensor(len(scales)),
            "outside": torch.tensor(any(not name.startswith("decoder.layers.") for name in scales)),
        }  # fmt: skip


def test_int8_rounds_weights_by_row_and_inputs_by_their_calibrated_range() -> None:
    layer = run_ranks(1, of_the_layer, "int8")[0]
    weight = rounded(layer["weight"], layer["weight"].abs().amax(1, keepdim=True), 127)
    clipped = layer["hidden"].clamp(-layer["amax"] * 128 / 127, layer["amax"])
    hidden = rounded(clipped, layer["amax"], 127)
    torch.testing.assert_close(layer["output"].double(), hidden @ weight.T, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(layer["output"], layer["hidden"] @ layer["weight"].T, rtol=1e-3, atol=1e-3)
    assert (layer["hidden"].abs() > layer["amax"]).any()
    # The gradient goes past the rounding, but through what was rounded on the other side.
    torch.testing.assert_close(layer["hidden_grad"].double(), weight.sum(0).expand(8, 2, 128), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(layer["weight_grad"].double(), hidden.sum((0, 1)).expand(128, 128), rtol=1e-5, atol=1e-4)
    assert layer["measures"] and layer["scales"] == 2 * 2 * 4 and not layer["outside"]


def test_int4_rounds_weights_by_blocks_of_128_and_leaves_inputs() -> None:
    layer = run_ranks(1, of_the_layer, "int4_weight_only")[0]
    weight = rounded(layer["weight"], layer["weight"].abs().amax(1, keepdim=True), 7)
    torch.testing.assert_close(layer["output"].double(), layer["hidden"].double() @ weight.T, rtol=1e-5, atol=1e-5)
    assert not layer["measures"] and layer["scales"] == 2 * 4


def test_fp8_rounds_to_e4m3() -> None:
    layer = run_ranks(1, of_the_layer, "fp8")[0]

    def rounded_to_fp8(values: Tensor, largest: Tensor) -> Tensor:
        scale = 448.0 / largest
        return (values * scale).clamp(-448.0, 448.0).to(torch.float8_e4m3fn).double() / scale.double()

    weight = rounded_to_fp8(layer["weight"], layer["weight"].abs().max())
    hidden = rounded_to_fp8(layer["hidden"], layer["amax"])
    torch.testing.assert_close(layer["output"].double(), hidden @ weight.T, rtol=1e-4, atol=1e-4)


def test_nvfp4_is_refused_without_a_cuda_device() -> None:
    with pytest.raises(RankFailed, match=r"InputError: model.quantization=nvfp4 needs a CUDA device"):
        run_ranks(1, of_the_layer, "nvfp4")
