"""Layer pairs on any pipeline stage, under recompute and sequence parallelism: one loss, one gradient."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.ranks import RankFailed, run_ranks
from tests.tiny import tiny_config, train_and_read

# The student has 2 layers and the teacher 4: at PP2, layer 0 pairs with layers 0 and 1 on the first stage.
PAIRS = [
    ["decoder.layers.0.input_layernorm", "decoder.layers.1.input_layernorm", "mse"],
    ["decoder.layers.0.input_layernorm", "decoder.layers.0.pre_mlp_layernorm"],  # one layer in two pairs
    ["decoder.layers.0.mlp", "decoder.layers.1.mlp", "smooth_l1"],
    ["decoder.layers.1.pre_mlp_layernorm", "decoder.layers.3.pre_mlp_layernorm"],
    ["decoder.final_layernorm", "decoder.final_layernorm"],
]
KD = {"intermediate_layer_pairs": PAIRS, "loss_balancer": "static", "intermediate_loss_weight": 0.5}
FULL = {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}

DIVISIONS: dict[str, tuple[int, dict[str, Any]]] = {
    "PP2": (2, {"pp": 2, "micro_batch_size": 2}),
    "recomputed": (1, {"micro_batch_size": 4, "student": FULL}),
    "recomputed at PP2": (2, {"pp": 2, "micro_batch_size": 2, "student": FULL}),
    "TP2 with sequence parallel, recomputed": (2, {"tp": 2, "sequence_parallel": True, "student": FULL}),
    "TP2 x PP2": (4, {"tp": 2, "pp": 2, "micro_batch_size": 4}),
    "DP2, materialised": (2, {"micro_batch_size": 4, "kd": {**KD, "logits_form": "materialised"}}),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return run_ranks(1, train_and_read, tiny_config(tmp_path_factory.mktemp("whole"), kd=KD))[0]


@pytest.mark.parametrize("division", DIVISIONS)
def test_pairs_give_one_run_however_it_is_divided(division: str, whole: list[dict[str, Any]], tmp_path: Path) -> None:
    world_size, settings = DIVISIONS[division]
    divided = run_ranks(world_size, train_and_read, tiny_config(tmp_path, **{"kd": KD, **settings}))[0]
    for ours, theirs in zip(divided, whole, strict=True):
        for name in ("loss", "logits_loss", "intermediate_loss", "intermediate_loss_weighted", "grad_norm"):
            if name in theirs:
                assert ours[name] == pytest.approx(theirs[name], rel=1e-5), (ours["step"], name)


def test_pairs_on_the_first_stage_reach_the_gradient(whole: list[dict[str, Any]], tmp_path: Path) -> None:
    without = {**KD, "intermediate_layer_pairs": PAIRS[3:]}
    fewer = run_ranks(1, train_and_read, tiny_config(tmp_path, kd=without))[0]
    assert fewer[0]["grad_norm"] != pytest.approx(whole[0]["grad_norm"], rel=1e-3)


def test_under_static_weights_the_injected_gradient_is_the_captured_ones(tmp_path: Path) -> None:
    """ModelOpt's capture, weighed by ratios that happen to be known, against the injection with those weights."""
    last = {"intermediate_layer_pairs": PAIRS[3:], "kd_loss_scale": 1.0}
    captured = run_ranks(
        1, train_and_read, tiny_config(tmp_path / "a", iters=1, kd={**last, "loss_balancer": "modelopt"})
    )
    record = captured[0][0]
    weight = record["intermediate_loss_weighted"] / record["intermediate_loss"]
    static = {**last, "loss_balancer": "static", "intermediate_loss_weight": weight}
    injected = run_ranks(1, train_and_read, tiny_config(tmp_path / "b", iters=1, kd=static))[0][0]
    for name in ("loss", "logits_loss", "intermediate_loss", "grad_norm"):
        assert injected[name] == pytest.approx(record[name], rel=1e-5), name


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        (["decoder.layers.0.no_such_norm", "decoder.layers.0.input_layernorm"],
         "model has no layer decoder.layers.0.no_such_norm; 'no_such_norm' is not one of input_layernorm"),
        (["decoder.layers.0.mlp", "decoder.layers.0.mlp.nothing"], "model.teacher has no layer .*'nothing'"),
    ],
)  # fmt: skip
def test_a_layer_that_does_not_exist_is_refused_with_those_that_do(
    pair: list[str], message: str, tmp_path: Path
) -> None:
    with pytest.raises(RankFailed, match=f"InputError: .*{message}"):
        run_ranks(1, train_and_read, tiny_config(tmp_path, kd={"intermediate_layer_pairs": [pair]}))


def test_a_pair_across_stages_is_refused_for_a_colocated_teacher(tmp_path: Path) -> None:
    pair = ["decoder.layers.0.mlp", "decoder.layers.3.mlp"]
    cfg = tiny_config(tmp_path, pp=2, kd={"intermediate_layer_pairs": [pair]})
    cfg.model.teacher_device_strategy = "colocated"
    with pytest.raises(RankFailed, match=r"are on different pipeline stages.*or set model\.teacher_device_strategy="):
        run_ranks(2, train_and_read, cfg)
