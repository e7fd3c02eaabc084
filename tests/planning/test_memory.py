"""Memory estimates against the storages of real steps, and against exact shards where the strategy is not run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from megatron_kd.config.container import ConfigContainer
from megatron_kd.config.gpt_distillation import GPTDistillationProvider
from megatron_kd.placement.parameters import shard_parameters
from megatron_kd.placement.registry import STRATEGIES, strategy_named
from megatron_kd.placement.strategy import Strategy
from megatron_kd.planning.estimate import estimate
from megatron_kd.planning.memory import BODY, HANDED, HEAD, MOMENTS, OPTIMIZER, PARTS, rank_memory
from megatron_kd.planning.scenario import Scenario
from tests.planning.workloads import scenario, workload_of
from tests.ranks import run_ranks
from tests.tiny import tiny_config

pytestmark = pytest.mark.slow  # whole runs on several ranks

# Wide enough that the step is made of what the model counts rather than of one-element tensors.
SIZES: dict[str, Any] = {
    "num_layers": 4, "hidden_size": 128, "num_attention_heads": 8, "num_query_groups": 4, "ffn_hidden_size": 320,
    "seq_length": 64, "vocab_size": 3000,
}  # fmt: skip
FULL = {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}
# Names of the options of `tiny_config`, with the number of ranks.
STEPS: dict[str, tuple[int, dict[str, Any]]] = {
    "one rank": (1, {}),
    "bf16": (1, {"precision": "bf16"}),
    "recompute": (1, {"student": FULL}),
    "quantised": (1, {"student": {"quantization": "int8"}}),
    "quantised weights in bf16": (1, {"student": {"quantization": "int8_weight_only"}, "precision": "bf16"}),
    "materialised": (1, {"kd": {"logits_form": "materialised"}}),
    "tied, with the LM loss": (
        1,
        {"student": {"share_embeddings_and_output_weights": True}, "kd": {"skip_lm_loss": False}},
    ),
    "PP2": (2, {"pp": 2, "micro_batch_size": 2}),
    "TP2 with sequence parallel": (2, {"tp": 2, "sequence_parallel": True}),
    "balanced": (2, {"micro_batch_size": 2, "strategy": "balanced"}),
    "balanced, the student at PP2": (2, {"pp": 2, "micro_batch_size": 2, "strategy": "balanced"}),
    "gpu0": (2, {"micro_batch_size": 2, "strategy": "gpu0"}),
    "cpu": (2, {"micro_batch_size": 2, "strategy": "cpu"}),
    "DP2 in bf16": (2, {"precision": "bf16", "micro_batch_size": 2}),
}


def config(run_dir: Path, **options: Any) -> ConfigContainer:
    """A distillation of `SIZES`, the teacher wider."""
    strategy = options.pop("strategy", "colocated")
    sized = {"student": SIZES, "teacher": {**SIZES, "hidden_size": 192}}
    for name, values in sized.items():
        options[name] = {**values, **options.get(name, {})}
    cfg = tiny_config(run_dir, **options)
    assert isinstance(cfg.model, GPTDistillationProvider)
    cfg.model.teacher_device_strategy = strategy
    if strategy != "colocated":
        for size in ("tensor", "pipeline"):
            setattr(cfg.model.teacher, f"{size}_model_parallel_size", 1)
    return cfg


def compared(cfg: ConfigContainer) -> list[Any]:
    from tools.bench.plan_accuracy import compare

    return compare(cfg)


@pytest.mark.parametrize("name", STEPS)
def test_a_step_needs_what_was_estimated(name: str, tmp_path: Path) -> None:
    ranks, options = STEPS[name]
    for rank in run_ranks(ranks, compared, config(tmp_path, **options))[0]:
        assert abs(rank.state_error) < 0.05, rank
        assert abs(rank.peak_error) < 0.15, rank


def test_bodies_and_heads_are_exact_shards(tmp_path: Path) -> None:
    cfg = config(tmp_path, micro_batch_size=2)
    run = workload_of(cfg, 4, device="cpu")
    scenarios = {strategy.name: Scenario(run, strategy) for strategy in STRATEGIES}
    width, teacher = run.padded_vocab_size, run.teacher
    whole = shard_parameters(teacher, padded_vocab_size=width)
    head = 4 * width * teacher.hidden_size
    grid = scenarios["balanced"].grid
    for rank in range(4):
        shard = shard_parameters(teacher, padded_vocab_size=width, tp=grid.tp, pp=grid.pp, stage=grid.stage(rank) or 0)
        parts = {name: rank_memory(scenario, rank).peak.parts for name, scenario in scenarios.items()}
        assert (parts["balanced"][BODY], parts["balanced"][HEAD]) == (4 * shard.body, head)
        assert (parts["gpu0"][BODY], parts["gpu0"][HEAD]) == (4 * whole.body if rank == 0 else 0, head)
        assert (parts["cpu"][BODY], parts["cpu"][HEAD]) == (0, head)
        assert parts["colocated"][BODY] + parts["colocated"][HEAD] == 4 * whole.total
    largest = max(rank_memory(scenarios["balanced"], rank).peak.parts[BODY] for rank in range(4))
    assert largest <= 1.1 / 4 * 4 * whole.body
    on_host = strategy_named("cpu").host_bytes
    assert on_host(run) == 4 * whole.body
    assert on_host(replace(run, model=replace(run.model, share_teacher=False))) == 4 * 4 * whole.body


def test_the_head_is_divided_over_the_students_shards_and_on_its_last_stage(tmp_path: Path) -> None:
    planned = scenario(config(tmp_path, tp=2, pp=2, micro_batch_size=2), 4, "gpu0", device="cpu")
    heads = [rank_memory(planned, rank).peak.parts[HEAD] for rank in range(4)]
    half = 4 * planned.run.padded_vocab_size * planned.run.teacher.hidden_size // 2
    assert heads == [0, 0, half, half]


def test_hidden_states_of_a_step_are_held_where_the_losses_are(tmp_path: Path) -> None:
    planned = scenario(config(tmp_path, pp=2, micro_batch_size=2), 4, "gpu0", device="cpu")
    received = 4 * 64 * 192 * 4  # sequences of a rank, tokens, hidden size, bytes
    for rank, expected in ((0, 0), (3, received)):
        moments = {moment.name: moment for moment in rank_memory(planned, rank).moments}
        assert moments["backward"].parts[HANDED] == expected
    assert {m.name for r in range(4) for m in rank_memory(planned, r).moments} == set(MOMENTS)


def test_teacher_precision_and_quantisation(tmp_path: Path) -> None:
    cfg = config(tmp_path)
    assert isinstance(cfg.model, GPTDistillationProvider)

    def body(**values: Any) -> int:
        changed = replace(cfg, model=replace(cfg.model, **values))
        return estimate(workload_of(changed, 1, device="cpu"), strategy_named("colocated")).largest.peak.parts[BODY]

    shard = shard_parameters(cfg.model.teacher, padded_vocab_size=3072)
    assert body() == 2 * body(teacher_dtype="bfloat16") == 4 * shard.body
    rest = 2 * (shard.body - shard.matrix_elements)
    expected = shard.matrix_elements + 4 * shard.matrix_rows + rest
    assert body(teacher_dtype="bfloat16", teacher_quantization="int8") == expected


def test_optimizer_state_is_divided_over_data_parallel_ranks(tmp_path: Path) -> None:
    def state(ranks: int, **options: Any) -> int:
        cfg = config(tmp_path, micro_batch_size=2, **options)
        return (
            estimate(workload_of(cfg, ranks, device="cpu"), strategy_named("colocated"))
            .ranks[0]
            .moments[0]
            .parts[OPTIMIZER]
        )

    assert state(1) == pytest.approx(4 * state(4), abs=64)
    assert state(1) == state(4, distributed_optimizer=False)
    assert state(1, precision="bf16") == 1.5 * state(1)  # with float32 master weights


@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda strategy: strategy.name)
def test_parts_add_up_and_the_peak_is_the_largest_moment(strategy: Strategy, tmp_path: Path) -> None:
    found = estimate(workload_of(config(tmp_path, pp=2, micro_batch_size=2), 4), strategy)
    for rank in found.ranks:
        assert all(tuple(moment.parts) == PARTS and moment.total > 0 for moment in rank.moments)
        assert rank.peak.total == max(moment.total for moment in rank.moments)
    assert found.peak_bytes >= found.largest.peak.total == max(rank.peak.total for rank in found.ranks)
