"""Every problem names where each of its values was set: the recipe, a line of a file, a flag or an override."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from megatron_kd.config.container import ConfigContainer
from megatron_kd.config.problem import Problem
from megatron_kd.config.schema import flatten, schema_of
from megatron_kd.config.values import dotted
from megatron_kd.errors import ConfigError
from megatron_kd.resolve.configuration import check_config, merge
from tests.config.base import distillation, edited
from tests.config.illegal import CASES
from tests.config.written import as_file, as_words

IDS = {"ids": lambda case: str(case)[:60]}


def origins_in(found: Sequence[Problem]) -> dict[str, str]:
    """The origin of each field that problems name. Each must end the line of its problem."""
    assert found
    named = {}
    for problem in found:
        line = str(problem)
        assert line.endswith("]"), line
        shown = line[line.rindex(" [") + 2 : -1].split(", ")
        assert shown == list(dict.fromkeys(field.origin for field in problem.fields)), line
        named |= {field.name: field.origin for field in problem.fields}
    return named


def defaults(config: ConfigContainer) -> set[str]:
    """The fields that have the default of their class."""
    schema = schema_of(config)
    return {dotted(path) for path, value in flatten(config, schema).items() if value == schema.defaults[path]}


@pytest.mark.parametrize("edits", [edits for edits, _ in CASES], **IDS)
def test_values_of_a_recipe(edits: dict[str, Any]) -> None:
    config = edited(distillation(), edits)
    by_default = defaults(config)
    for name, origin in origins_in(check_config(config, []).problems).items():
        assert origin == ("default" if name in by_default else "recipe"), name


@pytest.mark.parametrize("edits", [edits for edits, _ in CASES], **IDS)
def test_values_of_a_file(edits: dict[str, Any], tmp_path: Path) -> None:
    words = as_file(tmp_path / "my.yaml", edits)
    lines = (tmp_path / "my.yaml").read_text().splitlines()
    for name, origin in origins_in(check_config(distillation(), words).problems).items():
        file, _, number = origin.rpartition(":")
        if name in edits:
            assert file == str(tmp_path / "my.yaml"), name
            assert lines[int(number) - 1].strip().startswith(f"{name.split('.')[-1]}:")
        else:
            assert origin in ("recipe", "default"), name


@pytest.mark.parametrize("edits", [edits for edits, _ in CASES], **IDS)
def test_values_of_the_command_line(edits: dict[str, Any]) -> None:
    for name, origin in origins_in(check_config(distillation(), as_words(edits)).problems).items():
        assert (origin == "command line") == (name in edits), name


@pytest.mark.parametrize(
    ("words", "origins"),
    [
        (["--batch_size", "0"], {"train.micro_batch_size": "--batch_size 0"}),
        (["--num_epochs=2"], {"train.num_epochs": "--num_epochs 2", "dataset.mock": "recipe"}),
        (["--teacher_path", "no/such"], {"model.teacher.checkpoint": "--teacher_path no/such"}),
        (
            ["--teacher_dtype=bfloat16", "--teacher_device_strategy=colocated",
             "model.pipeline_model_parallel_size=2", "model.teacher.pipeline_model_parallel_size=2"],
            {"model.teacher_dtype": "--teacher_dtype bfloat16", "mixed_precision.precision": "default",
             "model.pipeline_model_parallel_size": "command line"},
        ),
    ],
)  # fmt: skip
def test_values_of_flags(words: list[str], origins: dict[str, str]) -> None:
    assert origins_in(check_config(distillation(), words).problems) == origins


def test_values_of_several_origins(tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text("model:\n  seq_length: 8\ntrain:\n  global_batch_size: 7\n")
    argv = ["--config-file", str(tmp_path / "my.yaml"), "model.teacher.seq_length=16"]
    batch, length = map(str, check_config(distillation(), argv).problems)
    assert batch.startswith("train.global_batch_size=7: ") and batch.endswith(f" [{tmp_path}/my.yaml:4]")
    assert length.endswith(f" [{tmp_path}/my.yaml:2, command line]")


def test_the_last_to_set_a_value_is_its_origin(tmp_path: Path) -> None:
    for name, size in (("first", 3), ("second", 7)):
        (tmp_path / f"{name}.yaml").write_text(f"train: {{global_batch_size: {size}}}\n")
    argv = [word for name in ("first", "second") for word in ("--config-file", f"{tmp_path}/{name}.yaml")]
    assert origins_in(check_config(distillation(), argv).problems)["train.global_batch_size"].endswith("second.yaml:1")
    (problem,) = check_config(distillation(), [*argv, "train.global_batch_size=9"]).problems
    assert str(problem).endswith("[command line]")


def test_what_a_run_finds_later_has_origins_too() -> None:
    merged = merge(distillation(), ["train.train_iters=5"])
    late = [Problem.of(merged.config, "train.train_iters rng.seed", "do not fit"), "a line of its own"]
    with pytest.raises(ConfigError) as caught, merged.located():
        raise ConfigError(late)
    assert caught.value.lines == [
        "train.train_iters=5, rng.seed=1234: do not fit [command line, default]", "a line of its own"]  # fmt: skip
