"""The strategies that there are, and that the rest of the package knows them by facts."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

import megatron_kd
from megatron_kd.config.gpt_distillation import GPTDistillationProvider
from megatron_kd.placement.registry import AUTO, CHOICES, STRATEGIES, asked_strategy, strategy_named

PACKAGE = Path(megatron_kd.__file__).parent
NAMES = {strategy.name for strategy in STRATEGIES}


def test_users_may_write_each_strategy_and_auto() -> None:
    choices = get_args(get_type_hints(GPTDistillationProvider)["teacher_device_strategy"])
    assert choices == CHOICES


def test_a_strategy_is_found_by_its_name() -> None:
    for strategy in STRATEGIES:
        assert strategy_named(strategy.name) is strategy
        assert asked_strategy(GPTDistillationProvider(teacher_device_strategy=strategy.name)) is strategy
    assert asked_strategy(GPTDistillationProvider(teacher_device_strategy=AUTO)) is None


@pytest.mark.parametrize("world_size", [1, 2, 64])
def test_one_strategy_is_for_unknown_memory(world_size: int) -> None:
    assert sum(strategy.for_unknown_memory(world_size) for strategy in STRATEGIES) == 1


def decisions(tree: ast.AST) -> Iterator[str]:
    """Every place of a file that decides by the name of a strategy: a comparison, a case, or a table."""
    for node in ast.walk(tree):
        match node:
            case ast.Compare(left=left, ops=ops, comparators=others):
                by_value = any(isinstance(op, ast.Eq | ast.NotEq | ast.In | ast.NotIn) for op in ops)
                decides = any(_is_name(side) or (by_value and _is_strategy(side)) for side in (left, *others))
            case ast.MatchValue(value=value):
                decides = _is_name(value)
            case ast.Dict(keys=keys):
                decides = any(key is not None and _is_name(key) for key in keys)
            case ast.Subscript(slice=key):
                decides = _is_strategy(key)
            case _:
                continue
        if decides:
            yield f"line {node.lineno}: {ast.unparse(node)}"


def _is_name(node: ast.AST) -> bool:
    """Whether a name is written out, alone or in a list; not `cpu`, which is a device too."""
    return any(isinstance(leaf, ast.Constant) and leaf.value in NAMES - {"cpu"} for leaf in ast.walk(node))


def _is_strategy(node: ast.AST) -> bool:
    return "strategy" in ast.unparse(node)


def test_only_placement_compares_the_name_of_a_strategy() -> None:
    files = [file for file in PACKAGE.rglob("*.py") if file.parent.name != "placement"]
    found = {str(file.relative_to(PACKAGE)): list(decisions(ast.parse(file.read_text()))) for file in files}
    assert {name: lines for name, lines in found.items() if lines} == {}


@pytest.mark.parametrize(
    "code",
    [
        'strategy == "colocated"',
        'model.teacher_device_strategy != "cpu"',
        'place in ("gpu0", "cpu")',
        "strategy.name == wanted",
        '{"balanced": 1, "other": 2}[place]',
        "builders[strategy.name]",
        'match place:\n    case "gpu0": pass',
    ],
)
def test_a_comparison_is_seen(code: str) -> None:
    assert list(decisions(ast.parse(code)))


@pytest.mark.parametrize("code", ['device == "cpu"', '{"cpu": 1, "cuda": 2}', 'progress == "auto"', "a.strategy is b"])
def test_what_is_no_comparison(code: str) -> None:
    assert not list(decisions(ast.parse(code)))
