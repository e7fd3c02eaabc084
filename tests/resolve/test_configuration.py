"""Types, unknown keys and their cures, from every source at once; and a saved run read back."""

from __future__ import annotations

import copy
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest

from megatron_kd.config.container import ConfigContainer
from megatron_kd.config.gpt_distillation import GPTDistillationProvider
from megatron_kd.config.gpt_model import GPTModelProvider
from megatron_kd.config.run_config import save_run_config
from megatron_kd.config.schema import schema_of
from megatron_kd.config.values import show
from megatron_kd.errors import ConfigError
from megatron_kd.resolve.configuration import config_from_file, load_config, with_arguments
from tests.config.base import DOCUMENTED_YAML, distillation, edited, plain
from tests.config.wrong_types import WRONG_TYPES


def problems_of(config: ConfigContainer, *argv: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        with_arguments(config, argv)
    return caught.value.lines


@pytest.mark.parametrize(
    ("key", "near"),
    [
        ("model.hiden_size", "model.hidden_size"),
        ("train.global_batchsize", "train.global_batch_size"),
        ("train.lr", "optimizer.lr"),
        ("lr", "optimizer.lr"),
        ("trian.train_iters", "train.train_iters"),
        ("modle.num_layers", "model.num_layers"),
        ("modle.teacher.num_layers", "model.teacher.num_layers"),
        ("teacher.num_layers", "model.teacher.num_layers"),
        ("model.teacher.num_layer", "model.teacher.num_layers"),
        ("model.skip_lm_loss", "model.kd_config.skip_lm_loss"),
        ("kd_config.skip_lm_loss", "model.kd_config.skip_lm_loss"),
        ("logit_kl_temprature", "model.kd_config.logit_kl_temperature"),
        ("train.seed", "rng.seed"),
        ("optimiser", "optimizer"),
        ("model/hidden_size", "model.hidden_size"),
    ],
)
@pytest.mark.parametrize("form", ["{}=1", "+{}=1", "++{}=1", "~{}"])
def test_unknown_keys_name_the_nearest(key: str, near: str, form: str) -> None:
    (line,) = problems_of(distillation(), form.format(key))
    assert line == f"{key}: unknown key; did you mean {near}? [command line]"


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("zzz=1", ["the sections are model, train,"]),
        ("train.zzz=1", ["the fields of train are train_iters,"]),
        ("train.train_iters.x=1", ["train.train_iters is a value", "as a whole"]),
        ("model.kd_config.logit_layers.0=a", ["model.kd_config.logit_layers is a value"]),
        ("model.hybrid_override_pattern=M", ["Mamba", "state-space", "GPT"]),
        ("model.mamba_head_dim=64", ["Mamba"]),
        ("model.teacher.is_hybrid_model=true", ["Mamba"]),
        ("train=3", ["is a section", "mapping"]),
        ("model.teacher=null", ["model.teacher=null", "mapping"]),
    ],
)
def test_keys_that_cannot_be_set(argument: str, words: list[str]) -> None:
    (line,) = problems_of(distillation(), argument)
    assert line.startswith(argument.split("=")[0])
    assert all(word in line for word in words), line


@pytest.mark.parametrize(("argument", "words"), WRONG_TYPES)
def test_wrong_types(argument: str, words: list[str]) -> None:
    (line,) = problems_of(distillation(), argument)
    assert line.endswith("[command line]")
    assert all(word in line for word in words), line


@pytest.mark.parametrize(
    ("argument", "section", "value"),
    [
        ("optimizer.lr=1", "optimizer.lr", 1.0),
        ("checkpoint.resume=0", "checkpoint.resume", 0),
        ("checkpoint.resume=never", "checkpoint.resume", "never"),
        ("dataset.data_path=[1,a]", "dataset.data_path", [1.0, "a"]),
        ("model.teacher_dtype=torch.bfloat16", "model.teacher_dtype", "bfloat16"),
        ("model.teacher_dtype=bf16", "model.teacher_dtype", "bfloat16"),
        ("mixed_precision.precision=bfloat16", "mixed_precision.precision", "bf16"),
        ("model.teacher={num_layers: 3, vocab_size: null}", "model.teacher.num_layers", 3),
    ],
)
def test_values_are_taken_as_meant(argument: str, section: str, value: Any) -> None:
    result: Any = with_arguments(distillation(), [argument])
    for name in section.split("."):
        result = getattr(result, name)
    assert result == value
    assert type(result) is type(value)


def test_the_recipe_is_not_changed_and_shares_nothing() -> None:
    recipe = distillation(dataset__data_path=["a"])
    before = copy.deepcopy(recipe)
    config = with_arguments(recipe, ["model.hidden_size=32", "model.teacher.num_layers=1", "train.train_iters=1"])
    assert recipe == before
    assert config.dataset.data_path is not recipe.dataset.data_path
    default = with_arguments(recipe, ["~model.kd_config.logit_layers"]).model.kd_config.logit_layers
    default.append("x")
    assert (
        with_arguments(recipe, ["~model.kd_config.logit_layers"]).model.kd_config.logit_layers == ["output_layer"] * 2
    )


def test_all_sources_are_told_at_once_with_their_places(tmp_path: Path) -> None:
    file = tmp_path / "my.yaml"
    file.write_text("train:\n  train_iters: many\nmodel:\n  hiden_size: 8\n  teacher:\n    num_layers: 1.5\n")
    recipe = distillation(optimizer__lr="fast")
    lines = problems_of(recipe, "--config-file", str(file), "train.lr=1", "a=(", "--x")
    starts = ["optimizer.lr=fast", "--x", "a=(", "train.train_iters=many", "model.hiden_size", "model.teacher.num_"]
    ends = ["[recipe]", "[command line]", "[command line]", f"[{file}:2]", f"[{file}:4]", f"[{file}:6]"]
    assert len(lines) == 7
    for line, start, end in zip(lines, starts, ends, strict=False):
        assert line.startswith(start)
        assert line.endswith(end)
    assert lines[-1].startswith("train.lr: unknown key")


def test_a_file_that_mixes_two_kinds(tmp_path: Path) -> None:
    file = tmp_path / "mixed.yaml"
    file.write_text("logit_kl_temperature: 2.0\ntrain: {train_iters: x}\n")
    mixed, wrong_type = problems_of(distillation(), "--config-file", str(file))
    assert "mixes fields of model.kd_config (logit_kl_temperature) with sections (train)" in mixed
    assert wrong_type.startswith("train.train_iters=x")


def test_a_file_of_the_losses_with_a_slip(tmp_path: Path) -> None:
    file = tmp_path / "kd.yaml"
    file.write_text("skip_lm_loss: false\nlogit_kl_temprature: 2.0\n")
    (line,) = problems_of(distillation(), "--config-file", str(file))
    assert line.startswith("model.kd_config.logit_kl_temprature: unknown key")
    assert "model.kd_config.logit_kl_temperature" in line
    assert line.endswith(f"[{file}:2]")


def test_a_recipe_with_a_wrong_section() -> None:
    config = ConfigContainer(train={"train_iters": 3}, model=7)  # type: ignore[arg-type]
    lines = problems_of(config)
    assert lines == ["model: must be a GPTModelProvider [recipe]", "train: must be a TrainConfig [recipe]"]


def test_problems_of_the_whole_are_found_beside_bad_edits() -> None:
    argv = ["model.hiden_size=8", "train.global_batch_size=7", "model.tensor_model_parallel_size=3"]
    with pytest.raises(ConfigError) as caught:
        load_config(distillation, argv)
    text = str(caught.value)
    for words in (
        "model.hiden_size: unknown key; did you mean model.hidden_size?",
        "train.global_batch_size=7: must be a multiple of 2",
        "model.num_attention_heads=8, model.tensor_model_parallel_size=3",
        "model.hidden_size=64, model.tensor_model_parallel_size=3",
    ):
        assert words in text
    assert len(set(caught.value.lines)) == len(caught.value.lines)


def test_the_number_of_ranks_comes_from_the_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    load_config(distillation)
    with pytest.raises(ConfigError, match="3 data-parallel ranks"):
        load_config(distillation, world_size=3)
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(ConfigError, match="3 data-parallel ranks"):
        load_config(distillation)
    load_config(distillation, world_size=4)


@dataclass(kw_only=True)
class Preset(GPTModelProvider):
    """A model whose author made it a class."""

    num_layers: int = 7


def test_classes_of_the_recipe_stay() -> None:
    recipe = ConfigContainer(model=GPTDistillationProvider(teacher=Preset(num_layers=9)))
    config = with_arguments(recipe, ["model.teacher.hidden_size=32"])
    assert isinstance(config.model, GPTDistillationProvider)
    assert config.model.teacher == Preset(num_layers=9, hidden_size=32)
    assert with_arguments(recipe, ["~model.teacher"]).model.teacher == Preset()


OTHER: dict[Any, Any] = {bool: lambda old: not old, int: lambda old: old + 1, float: lambda old: old / 3 + 1e-9}
SPECIAL = {
    "dataset.data_path": [0.25, "data/a b", 0.75, "010"],
    "dataset.train_data_path": ["off", "1e-3", "1:30", "./~", "null", "0x1f", "- x", "#y", "é", " a "],
    "model.kd_config.intermediate_layer_pairs": [["a", "b"], ["decoder.layers.1.mlp", "c"]],
    "model.kd_config.logit_layers": [],
    "checkpoint.resume": 12,
    "tokenizer.tokenizer_model": "true",
}


def _other_value(name: str, annotation: Any, default: Any) -> Any:
    """A value of the field's type that is not its default."""
    if name in SPECIAL:
        return SPECIAL[name]
    if type(default) in OTHER:
        return OTHER[type(default)](default)
    members = [annotation, *get_args(annotation)]
    choices = [choice for member in members if get_origin(member) is Literal for choice in get_args(member)]
    if choices:
        return next(choice for choice in choices if choice != default)
    by_type = [(int, 3), (float, 1e-30), (list[str | float], ["x", 2.0]), (str, f"some text: {name}")]
    return next(value for kind, value in by_type if kind in members)


def _with_every_field_changed(config: ConfigContainer) -> ConfigContainer:
    schema = schema_of(config)
    names = {".".join(path): path for path in schema.leaves}
    edits = {name: _other_value(name, schema.leaves[path], schema.defaults[path]) for name, path in names.items()}
    return edited(config, edits)


@pytest.mark.parametrize("make", [distillation, plain])
def test_a_saved_run_reads_back_equal_in_every_field(make: Any, tmp_path: Path) -> None:
    changed = _with_every_field_changed(make())
    for _, model in changed.models.by_field():
        model.hf_path = None  # a folder must be there: see tests/huggingface/test_into_config.py
    for name, config in (("default", make()), ("changed", changed)):
        file = tmp_path / "run" / f"{name}.yaml"
        save_run_config(config, file)
        again = config_from_file(file)
        assert again == config
        assert type(again.model) is type(config.model)
        assert with_arguments(make(), ["--config-file", str(file)]) == config
        assert list(file.parent.glob(".*")) == []


def test_the_round_trip_changes_every_field() -> None:
    changed = _with_every_field_changed(distillation())
    for path, default in schema_of(changed).defaults.items():
        value: Any = changed
        for name in path:
            value = getattr(value, name)
        assert value != default, path


@pytest.mark.parametrize(
    ("text", "distils"),
    [
        ("model: {num_layers: 4}\n", False),
        ("train: {train_iters: 4}\n", False),
        ("model: {teacher: {num_layers: 4}}\n", True),
        ("model: {kd_config: {skip_lm_loss: false}}\n", True),
        (DOCUMENTED_YAML, True),
    ],
)
def test_a_file_alone_says_whether_it_distils(text: str, distils: bool, tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(text)
    config = config_from_file(file, ["train.global_batch_size=32"])
    assert isinstance(config.model, GPTDistillationProvider) == distils
    assert config.train.global_batch_size == 32


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "null"), (True, "true"), (1.5, "1.5"), ("a/b", "a/b"), ("7", "'7'"), ("null", "'null'"), ("", "''")],
)
def test_values_are_shown_as_written(value: Any, text: str) -> None:
    assert show(value) == text
    assert len(show([value] * 1000)) == 120


def test_nothing_heavy_is_imported() -> None:
    code = (
        "import sys, megatron_kd.commands.cli, megatron_kd.resolve.configuration, megatron_kd.config.run_config;"
        "print(sorted({m.split('.')[0] for m in sys.modules} & {'torch', 'megatron', 'modelopt', 'transformers'}))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
