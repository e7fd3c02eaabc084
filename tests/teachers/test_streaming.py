"""Layers that are copied to where they compute, forced on the CPU: the same numbers, two layers at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from megatron_kd.config.container import ConfigContainer
from megatron_kd.models.gpt import DistillableGPTModel
from megatron_kd.teachers import build_teacher as build
from megatron_kd.teachers.placed import PlacedTeacher
from megatron_kd.teachers.streaming import stream_layers
from tests.ranks import run_ranks
from tests.teachers.built import CPU, built_teacher, student_layout
from tests.teachers.test_strategies import placed_config
from tests.teachers.test_weights import PLACES, digests, train_and_look
from tests.tiny import VOCAB

pytestmark = pytest.mark.slow  # whole runs on several ranks


def hidden_states(model: DistillableGPTModel, seed: int) -> Tensor:
    """The final hidden states [S, B, G] of some tokens."""
    found: list[Tensor] = []
    hook = model.decoder.final_layernorm.register_forward_hook(lambda module, inputs, output: found.append(output))
    tokens = torch.randint(VOCAB, (2, 16), generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        model(tokens, torch.arange(16).expand(2, 16), None)
    hook.remove()
    return found[0]


def streamed_beside_plain(cfg: ConfigContainer) -> dict[str, Any]:
    """On a rank: a teacher's states before and while its layers are streamed, and what is where."""
    teacher = built_teacher(cfg, student_layout(cfg))
    assert isinstance(teacher, PlacedTeacher) and teacher.body is not None
    model = teacher.body.model
    plain = [hidden_states(model, seed) for seed in range(3)]
    before, host = digests(teacher.tensors()), [p.data_ptr() for p in model.parameters()]
    stream = stream_layers(model, CPU)
    places = [(p.data_ptr(), p.data_ptr() + p.nbytes) for p in stream.staging]
    used: list[set[int]] = []  # by call of a layer: where its parameters are

    def look(layer: torch.nn.Module, inputs: Any, output: Any) -> None:
        used.append({i for p in layer.parameters() for i, (a, b) in enumerate(places) if a <= p.data_ptr() < b})
        assert all(any(a <= p.data_ptr() < b for a, b in places) for p in layer.parameters())

    for layer in model.decoder.layers:
        layer.register_forward_hook(look, prepend=True)
    streamed = [hidden_states(model, seed) for seed in range(3)]
    assert all(torch.equal(a, b) for a, b in zip(plain, streamed, strict=True))
    layer_bytes = max(sum(p.nbytes for p in layer.parameters()) for layer in model.decoder.layers)
    kept = digests(teacher.tensors()) == before and [p.data_ptr() for p in model.parameters()] == host
    broken = model.decoder.layers[1].mlp.register_forward_pre_hook(_fail)
    with pytest.raises(ZeroDivisionError):
        hidden_states(model, 0)
    broken.remove()
    after_error = torch.equal(hidden_states(model, 1), plain[1]) and digests(teacher.tensors()) == before
    return {
        "used": used[: 3 * len(model.decoder.layers)],
        "host kept": kept,
        "after an error": after_error,
        "staged layers": sum(place.nbytes for place in stream.staging) / layer_bytes,
    }


def _fail(*args: Any) -> None:
    raise ZeroDivisionError


@pytest.mark.parametrize("quantization", [None, "int8"])
@pytest.mark.parametrize("num_layers", [2, 3])
def test_streaming_changes_no_bit(num_layers: int, quantization: Any, tmp_path: Path) -> None:
    cfg = placed_config(tmp_path, {}, {"strategy": "cpu"})
    cfg.model.teacher_quantization, cfg.model.teacher.num_layers = quantization, num_layers
    (seen,) = run_ranks(1, streamed_beside_plain, cfg)
    assert seen["used"] == [{index % 2} for index in range(3 * cfg.model.teacher.num_layers)]
    assert seen["host kept"] and seen["after an error"]
    assert 2 <= seen["staged layers"] < 2.2, "two layers, and what alignment adds"


def train_streamed(cfg: ConfigContainer) -> dict[str, Any]:
    """On a rank: `train_and_look` as on a machine with GPUs."""
    build.must_stream = lambda device: True  # this process ends with the test
    return train_and_look(cfg)


def test_a_run_is_the_same_with_layers_streamed(tmp_path: Path) -> None:
    world_size, student, teacher = PLACES["cpu"]
    plain = run_ranks(world_size, train_and_look, placed_config(tmp_path / "a", student, teacher, iters=2))
    streamed = run_ranks(world_size, train_streamed, placed_config(tmp_path / "b", student, teacher, iters=2))
    losses = [[r["logits_loss"] for r in ranks[0]["records"]] for ranks in (plain, streamed)]
    assert losses[0] == losses[1]
    assert all(seen["before"] == seen["after"] for seen in streamed)
