"""The command line: Hydra's grammar, what is refused, and what wins over what."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from megatron_kd.errors import ConfigError
from megatron_kd.resolve.configuration import with_arguments
from megatron_kd.resolve.edits import RESET
from megatron_kd.resolve.overrides import parse_arguments, parse_override, split_arguments
from tests.config.base import DOCUMENTED_YAML, distillation, plain


@pytest.mark.parametrize(
    ("text", "path", "value"),
    [
        ("train.train_iters=5", "train.train_iters", 5),
        ("+train.train_iters=5", "train.train_iters", 5),
        ("++train.train_iters=5", "train.train_iters", 5),
        ("~train.train_iters", "train.train_iters", RESET),
        ("optimizer.lr=1e-3", "optimizer.lr", 1e-3),
        ("ddp.bucket_size=null", "ddp.bucket_size", None),
        ("checkpoint.save=false", "checkpoint.save", False),
        ("dataset.data_path=[0.3,data/a,0.7,data/b]", "dataset.data_path", [0.3, "data/a", 0.7, "data/b"]),
        ("dataset.data_path=['a b', \"c,d\"]", "dataset.data_path", ["a b", "c,d"]),
        ("dataset.split='9,1,0'", "dataset.split", "9,1,0"),
        ("dataset.split=949,50,1", "dataset.split", "949,50,1"),
        ("++dataset.split=0.9,0.1 ", "dataset.split", "0.9,0.1"),
        ("logger.run_dir='runs/a b=c'", "logger.run_dir", "runs/a b=c"),
        ("logger.run_dir=", "logger.run_dir", ""),
        ("train={train_iters: 3, micro_batch_size: 1}", "train", {"train_iters": 3, "micro_batch_size": 1}),
        ("a=[[x.y, 'z'],{k: [1]}]", "a", [["x.y", "z"], {"k": [1]}]),
    ],
)
def test_grammar(text: str, path: str, value: Any) -> None:
    edit, problem = parse_override(text)
    assert problem is None
    assert edit is not None
    assert (".".join(edit.path), edit.value) == (path, value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("train.train_iters=1,2", ["sweep", "[a,b]"]),
        ("train.train_iters=range(1,3)", ["sweep"]),
        ("train.train_iters=choice(1,2)", ["sweep"]),
        ("train.train_iters=glob(*)", ["sweep"]),
        ("train={train_iters: choice(1,2)}", ["sweep"]),
        ("logger.run_dir=a,b", ["sweep", "has one; write 'logger.run_dir=\"a,b\"'"]),
        ("train.train_iters", ["not an override", "section.field=value"]),
        ("logger.run_dir=a(b", ["cannot be read", "quotes"]),
        ("dataset.data_path=[1", ["cannot be read"]),
        ("train@x=1", ["packages"]),
        ("~train.train_iters=3", ["takes no value", "~train.train_iters"]),
        ("=3", ["names no field"]),
    ],
)
def test_refused(text: str, words: list[str]) -> None:
    edit, problem = parse_override(text)
    assert edit is None
    assert problem is not None
    line = str(problem)
    assert line.startswith(text)
    assert line.endswith("[command line]")
    assert "\n" not in line
    assert all(word in line for word in words), line


def test_arguments_are_parted() -> None:
    argv = ["a=1", "--config-file", "x.yaml", "~b", "--config-file=y.yaml", "--what", "--config-file"]
    files, overrides, problems = split_arguments(argv)
    assert files == ["x.yaml", "y.yaml"]
    assert overrides == ["a=1", "~b"]
    assert [str(problem).split(":")[0] for problem in problems] == ["--what", "--config-file"]


def test_everything_wrong_is_told() -> None:
    arguments = parse_arguments(["--config-file", "no.yaml", "a=(", "--x", "train.train_iters=3"])
    assert len(arguments.edits) == 1
    assert [str(problem).split(" ")[0].rstrip(":") for problem in arguments.problems] == ["--x", "--config-file", "a=("]


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    texts = {
        "first": "train: {train_iters: 20, global_batch_size: 20}\nmodel: {hidden_size: 96}\n",
        "second": "train:\n  global_batch_size: 30\n",
        "kd": DOCUMENTED_YAML,
    }
    for name, text in texts.items():
        (tmp_path / f"{name}.yaml").write_text(text)
    return {name: str(tmp_path / f"{name}.yaml") for name in texts}


def test_recipe_then_files_then_command_line(files: dict[str, str]) -> None:
    recipe = distillation(train__micro_batch_size=4)
    argv = ["train.global_batch_size=40", "--config-file", files["first"], "--config-file", files["second"]]
    config = with_arguments(recipe, argv)
    assert config.train.micro_batch_size == 4  # the recipe
    assert config.train.train_iters == 20  # the first file
    assert config.model.hidden_size == 96
    assert config.train.global_batch_size == 40  # the command line
    assert with_arguments(recipe, argv[1:]).train.global_batch_size == 30  # the second file
    assert with_arguments(recipe, ["train.train_iters=1", "train.train_iters=2"]).train.train_iters == 2


def test_settings_of_the_losses_in_a_file(files: dict[str, str]) -> None:
    for argv in (
        ["--config-file", files["kd"]],
        [f"--config-file={files['kd']}"],
        [f"model.kd_config={files['kd']}"],
        [f"+model.kd_config={files['kd']}"],
    ):
        kd = with_arguments(distillation(), argv).model.kd_config
        assert kd.logit_kl_temperature == 2.0
        assert kd.intermediate_layer_pairs == [["decoder.final_layernorm", "decoder.final_layernorm"]]
        assert kd.logit_layers == ["output_layer", "output_layer"]
    argv = [f"model.kd_config={files['kd']}", "model.kd_config.logit_kl_temperature=3"]
    assert with_arguments(distillation(), argv).model.kd_config.logit_kl_temperature == 3.0


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("no.yaml", ["no.yaml: cannot be read"]),
        ("{first}", ["sections (train, model)", "--config-file"]),
        ("3", ["model.kd_config=3", "name of a YAML file"]),
    ],
)
def test_no_settings_of_the_losses(files: dict[str, str], value: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        with_arguments(distillation(), [f"model.kd_config={value.format(**files)}"])
    (line,) = caught.value.lines
    assert all(word in line for word in words), line


def test_a_recipe_without_a_teacher_has_no_settings_for_one(files: dict[str, str]) -> None:
    for argv in (["--config-file", files["kd"]], ["model.teacher.num_layers=2"], ["model.teacher_dtype=float32"]):
        with pytest.raises(ConfigError, match=r"has no teacher .* use a distillation recipe"):
            with_arguments(plain(), argv)


def test_tilde_returns_to_the_class_default() -> None:
    recipe = distillation(optimizer__lr=1.0, optimizer__min_lr=0.5)
    config = with_arguments(recipe, ["~optimizer.lr"])
    assert (config.optimizer.lr, config.optimizer.min_lr) == (3e-4, 0.5)
    config = with_arguments(recipe, ["optimizer.weight_decay=0.7", "~optimizer"])
    assert (config.optimizer.lr, config.optimizer.min_lr, config.optimizer.weight_decay) == (3e-4, 0.0, 0.01)
    assert with_arguments(recipe, ["~model.teacher.num_layers"]).model.teacher.num_layers == 2
