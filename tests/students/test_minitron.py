"""The channels kept are the most important by a float64 computation, and the student consists of exactly those."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from megatron_kd.config.gpt_model import GPTModelProvider
from megatron_kd.students.pruned_sizes import Sizes, pruned_architecture
from tests.ranks import RankFailed, run_ranks
from tests.students.reference import Parameters, forward, importances
from tests.tiny import STUDENT, VOCAB

TEACHER = replace(STUDENT, num_layers=4, hidden_size=48, ffn_hidden_size=96, num_attention_heads=8, init=None)
HALF = Sizes(num_layers=2, hidden_size=32, ffn_hidden_size=64, num_attention_heads=4)


def batches(count: int = 3) -> list[Tensor]:
    return [torch.randint(0, VOCAB, (4, 16), generator=torch.Generator().manual_seed(seed)) for seed in range(count)]


def pruned(model: GPTModelProvider, sizes: Sizes, broken: bool = False) -> dict[str, Any]:
    """On a rank: prune random weights; parameters before and after, logits [B, S, V] after, layers kept and scores."""
    from megatron_kd.models.build_gpt import ModelShard
    from megatron_kd.models.micro_batch import MicroBatch
    from megatron_kd.models.weights import randomise
    from megatron_kd.runtime.start import running_ranks
    from megatron_kd.students.minitron import measure_and_cut, prunable_model

    with running_ranks(tensor_model_parallel_size=1, pipeline_model_parallel_size=1, seed=1) as layout, torch.no_grad():
        whole = ModelShard(provider=model, layout=layout, padded_vocab_size=256, vocab_size=VOCAB, dtype="float32")
        teacher = prunable_model(whole)
        randomise(teacher, seed=7, std=0.3, num_layers=model.num_layers)
        generator = torch.Generator().manual_seed(3)
        for name, value in teacher.named_parameters():
            if value.ndim == 1:  # norms of 1 and biases of 0 would hide which of them were kept
                value.add_(torch.rand(value.shape, generator=generator))
            if broken and name == "embedding.word_embeddings.weight":
                value.fill_(float("nan"))
        before = {name: value.clone() for name, value in teacher.named_parameters()}
        position_ids = torch.arange(16).expand(4, 16)
        state, depth = measure_and_cut(
            teacher, sizes, [MicroBatch(tokens, tokens, position_ids, torch.ones(4, 16), ()) for tokens in batches()]
        )
        student = prunable_model(replace(whole, provider=pruned_architecture(model, sizes)))
        student.load_state_dict(state)
        logits = student.eval()(batches()[0], position_ids, None)
        after = {name: value.clone() for name, value in student.named_parameters()}
    return {"before": before, "after": after, "logits": logits, "kept": depth.kept, "scores": depth.scores}


@pytest.fixture(scope="module")
def half() -> dict[str, Any]:
    return run_ranks(1, pruned, TEACHER, HALF)[0]


def kept_by_hand(model: GPTModelProvider, sizes: Sizes, parameters: Parameters) -> tuple[Parameters, list[int]]:
    """The student of the most important layers, channels and heads, cut out of the teacher's weights."""
    found = importances(model, parameters, batches())
    hidden = top(found.hidden, sizes.hidden_size)
    layers = sorted(sorted(range(model.num_layers), key=lambda layer: -found.layers[layer])[: sizes.num_layers])
    D = model.hidden_size // model.num_attention_heads
    groups, each = found.heads[0].shape
    keep = (sizes.num_attention_heads or 0) // groups
    student = {
        "embedding.word_embeddings.weight": parameters["embedding.word_embeddings.weight"][:, hidden],
        "output_layer.weight": parameters["output_layer.weight"][:, hidden],
        "decoder.final_layernorm.weight": parameters["decoder.final_layernorm.weight"][hidden],
    }
    for new, old in enumerate(layers):
        at, to = f"decoder.layers.{old}.", f"decoder.layers.{new}."
        inner = top(found.inner[old], sizes.ffn_hidden_size)
        heads = [top(found.heads[old][group], keep) for group in range(groups)]
        # A group's rows of QKV are its queries, its key and its value.
        qkv = [
            group * (each + 2) + head for group in range(groups) for head in (*heads[group].tolist(), each, each + 1)
        ]
        proj = [group * each + head for group in range(groups) for head in heads[group].tolist()]
        fc1, fc2 = parameters[f"{at}mlp.linear_fc1.weight"], parameters[f"{at}mlp.linear_fc2.weight"]
        gates = torch.cat([inner, inner + model.ffn_hidden_size])
        student |= {
            f"{to}input_layernorm.weight": parameters[f"{at}input_layernorm.weight"][hidden],
            f"{to}pre_mlp_layernorm.weight": parameters[f"{at}pre_mlp_layernorm.weight"][hidden],
            f"{to}self_attention.linear_qkv.weight": parameters[f"{at}self_attention.linear_qkv.weight"]
            .unflatten(0, (-1, D))[qkv].flatten(0, 1)[:, hidden],
            f"{to}self_attention.linear_proj.weight": parameters[f"{at}self_attention.linear_proj.weight"]
            .unflatten(1, (-1, D))[:, proj].flatten(1, 2)[hidden],
            f"{to}mlp.linear_fc1.weight": fc1[gates][:, hidden],
            f"{to}mlp.linear_fc2.weight": fc2[hidden][:, inner],
        }  # fmt: skip
    return student, layers


def top(importance: Tensor, count: int | None) -> Tensor:
    """The `count` most important, in the teacher's order."""
    return importance.argsort(descending=True)[:count].sort().values


def test_the_pruned_model_computes_what_one_cut_by_hand_computes(half: dict[str, Any]) -> None:
    by_hand, layers = kept_by_hand(TEACHER, HALF, half["before"])
    assert half["kept"] == layers
    assert {name: value.shape for name, value in by_hand.items()} == {
        name: value.shape for name, value in half["after"].items()
    }
    student = pruned_architecture(TEACHER, HALF)
    expected = forward(student, by_hand, batches()[0])
    torch.testing.assert_close(half["logits"].double(), expected, rtol=1e-4, atol=1e-4)
    assert (expected - forward(TEACHER, half["before"], batches()[0])).abs().max() > 0.1  # there was something to lose


def test_the_kept_channels_are_those_of_highest_importance(half: dict[str, Any]) -> None:
    """By their values: a channel's column of the embedding, and a row of the second matrix, say which it is."""
    found = importances(TEACHER, half["before"], batches())
    embedding = "embedding.word_embeddings.weight"
    assert columns_of(half["after"][embedding], half["before"][embedding]) == set(top(found.hidden, 32).tolist())
    hidden = top(found.hidden, 32)
    for new, old in enumerate(half["kept"]):
        name = "decoder.layers.{}.mlp.linear_fc2.weight"
        # rows are sorted by importance in the student, which a sum over them does not see
        teacher = half["before"][name.format(old)][hidden].double().sum(0, keepdim=True)
        student = half["after"][name.format(new)].double().sum(0, keepdim=True)
        assert columns_of(student, teacher) == set(top(found.inner[old], 64).tolist())


def columns_of(part: Tensor, whole: Tensor) -> set[int]:
    """Which columns of `whole` those of `part` are; exactly one each."""
    same = ((part.T[:, None] - whole.T[None]).abs() < 1e-9).all(-1)
    assert (same.sum(1) == 1).all()
    return set(same.int().argmax(1).tolist())


def test_the_layers_scores_are_those_of_float64(half: dict[str, Any]) -> None:
    assert half["scores"] == pytest.approx(importances(TEACHER, half["before"], batches()).layers, rel=1e-4)


def test_depth_alone_leaves_the_layers_that_are_kept_as_they_are() -> None:
    found = run_ranks(1, pruned, TEACHER, Sizes(num_layers=3))[0]
    assert len(found["kept"]) == 3 and found["kept"] == sorted(found["kept"])
    for name, value in found["after"].items():
        old = name
        if name.startswith("decoder.layers."):
            _, _, layer, rest = name.split(".", 3)
            old = f"decoder.layers.{found['kept'][int(layer)]}.{rest}"
        assert torch.equal(value, found["before"][old]), name


OTHERS: dict[str, Any] = {
    "LayerNorm with biases and learned positions": {
        "normalization": "LayerNorm",
        "add_bias_linear": True,
        "add_qkv_bias": True,
        "gated_linear_unit": False,
        "activation_func": "gelu",
        "position_embedding_type": "learned_absolute",
    },
    "tied embeddings and norms of queries and keys": {
        "share_embeddings_and_output_weights": True,
        "qk_layernorm": True,
        "add_qkv_bias": True,
    },
}


@pytest.mark.parametrize("kind", OTHERS)
def test_other_architectures_are_cut_to_the_same_sizes(kind: str) -> None:
    found = run_ranks(1, pruned, replace(TEACHER, **OTHERS[kind]), HALF)[0]
    assert torch.isfinite(found["logits"]).all()
    for name, value in found["after"].items():  # each is made of numbers of the teacher's, none of them invented
        layer = name.split(".")[2] if name.startswith("decoder.layers.") else None
        old = name if layer is None else name.replace(f".{layer}.", f".{found['kept'][int(layer)]}.", 1)
        assert torch.isin(value, found["before"][old]).all(), name
        assert value.numel() < found["before"][old].numel() or "q_layernorm" in name or "k_layernorm" in name, name


def test_a_teacher_that_computes_no_numbers_is_refused() -> None:
    with pytest.raises(RankFailed, match="the teacher's logits on the calibration data are not finite"):
        run_ranks(1, pruned, TEACHER, HALF, broken=True)
