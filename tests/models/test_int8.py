"""int8 weights are within half a scale of what they stand for."""

from __future__ import annotations

import pytest
import torch

from megatron_kd.models.int8 import dequantised, quantise_, row_scales


def quantised(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    values, scales = torch.empty_like(weight, dtype=torch.int8), row_scales(weight)
    quantise_(values, weight, scales)
    return values, scales


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [1e-3, 1.0, 300.0])
def test_a_weight_is_within_half_a_scale(dtype: torch.dtype, size: float) -> None:
    generator = torch.Generator().manual_seed(3)
    rows = torch.logspace(-2, 0, 70)[:, None]  # of many magnitudes
    weight = (size * rows * torch.randn(70, 48, generator=generator)).to(dtype)
    values, scales = quantised(weight)
    assert values.dtype == torch.int8 and values.abs().max() <= 127
    assert scales.dtype == torch.float32 and scales.shape == (70, 1)
    assert torch.equal(dequantised(values, scales, dtype), (values * scales).to(dtype))
    scales, weight = scales.double(), weight.double()
    assert ((values * scales - weight).abs() <= (0.5 + 1e-5) * scales).all()
    assert (values.abs().amax(1) == 127 * (weight != 0).any(1)).all(), "the whole of int8 is in use"


def test_a_row_of_zeros_stays_zero() -> None:
    values, scales = quantised(torch.zeros(2, 8))
    assert not dequantised(values, scales, torch.bfloat16).any()


def test_more_rows_than_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.randn(33, 8, generator=torch.Generator().manual_seed(3))
    expected = quantised(weight)[0]
    monkeypatch.setattr("megatron_kd.models.int8._BLOCK_BYTES", 4 * 8 * 5)
    assert torch.equal(quantised(weight)[0], expected)
