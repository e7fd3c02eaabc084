"""The flags of a recipe's command line: what each sets, how it may be written, and the messages about mistakes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from megatron_kd.config.problem import value_of
from megatron_kd.errors import ConfigError
from megatron_kd.resolve.configuration import check_config, with_arguments
from megatron_kd.resolve.flags import FLAGS, flags_help
from tests.config.base import distillation, plain


def problems_of(*argv: str, **edits: Any) -> list[str]:
    return list(map(str, check_config(distillation(**edits), argv, world_size=4).problems))


RECOMPUTE = {
    "model.recompute_granularity": "full",
    "model.recompute_method": "uniform",
    "model.recompute_num_layers": 1,
    "model.teacher.recompute_granularity": None,
}
NO_OTHER_DATA: dict[str, Any] = {
    "dataset.train_data_path": None,
    "dataset.valid_data_path": None,
    "dataset.test_data_path": None,
    "dataset.mock": False,
}

# (the flag, what it sets)
SETS: list[tuple[list[str], dict[str, Any]]] = [
    (["--teacher_path", "a/b"], {"model.teacher.checkpoint": "a/b", "model.teacher.init": None}),
    (["--teacher_device_strategy", "gpu0"], {"model.teacher_device_strategy": "gpu0"}),
    (["--teacher_on_cpu"], {"model.teacher_device_strategy": "cpu"}),
    (["--balance_teacher"], {"model.teacher_device_strategy": "balanced"}),
    (["--share_teacher"], {"model.share_teacher": True}),
    (["--teacher_rank", "3"], {"model.teacher_rank": 3}),
    (["--teacher_dtype", "float16"], {"model.teacher_dtype": "float16"}),
    (["--teacher_dtype", "bf16"], {"model.teacher_dtype": "bfloat16"}),
    (["--gradient_checkpointing"], RECOMPUTE),
    (["--data_path", "a/b.txt"], {"dataset.text_path": "a/b.txt", "dataset.data_path": None, **NO_OTHER_DATA}),
    (["--data_path", "b.jsonl"], {"dataset.text_path": "b.jsonl", "dataset.data_path": None, **NO_OTHER_DATA}),
    (["--data_path", "a/b"], {"dataset.text_path": None, "dataset.data_path": ["a/b"], **NO_OTHER_DATA}),
    (["--output_dir", "./outputs/x y"], {"logger.run_dir": "./outputs/x y"}),
    (["--batch_size", "3"], {"train.micro_batch_size": 3, "train.global_batch_size": None}),
    (["--num_epochs", "2"], {"train.num_epochs": 2.0, "train.train_iters": None}),
    (["--num_epochs", ".5"], {"train.num_epochs": 0.5, "train.train_iters": None}),
    (["--distributed"], {}),
]


def forms(words: list[str]) -> list[list[str]]:
    """All the ways to write one flag."""
    hyphens = words[0][:2] + words[0][2:].replace("_", "-")
    return [words, [hyphens, *words[1:]], ["=".join(words)], ["=".join([hyphens, *words[1:]])]]


@pytest.mark.parametrize(("words", "sets"), SETS, ids=lambda value: " ".join(value))
def test_what_a_flag_sets(words: list[str], sets: dict[str, Any]) -> None:
    recipe = distillation(model__share_teacher=False, dataset__train_data_path=["x"])
    for argv in forms(words):
        config = with_arguments(recipe, argv)
        assert {name: value_of(config, name) for name in sets} == sets
        if not sets:
            assert config == recipe


def test_every_flag_is_tested_and_helped() -> None:
    assert {words[0] for words, _ in SETS} | {"--student_config"} == {flag.name for flag in FLAGS}
    for flag in FLAGS:
        assert f"  {flag.usage}\n" in flags_help()


@pytest.fixture
def student(tmp_path: Path) -> Path:
    (tmp_path / "student.json").write_text('{\n\t"num_layers": 2, "rope_scaling": true, "layernorm_epsilon": 1e-6}')
    return tmp_path / "student.json"


def test_a_student_from_json(student: Path) -> None:
    for argv in forms(["--student_config", str(student)]):
        model = with_arguments(distillation(), argv).model
        assert (model.num_layers, model.rope_scaling, model.layernorm_epsilon) == (2, True, 1e-6)
        assert model.hidden_size == 64


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"hiden_size": 8}', ["model.hiden_size: unknown key; did you mean model.hidden_size?"]),
        ('{"num_layers": "8"}', ["model.num_layers='8': must be a whole number"]),
        ('{"teacher": 8}', ["model.teacher=8: is a section"]),
        ("[1]", ["must hold one object of model fields"]),
        ("", ["student.json:1: is not valid JSON"]),
        ('{\n"num_layers": }', ["student.json:2: is not valid JSON"]),
        ('{"num_layers": 1, "num_layers": 2}', ["num_layers is given twice"]),
        ('{"layernorm_epsilon": NaN}', ["NaN is not a JSON number"]),
        ('{"num_layers": 0}', ["model.num_layers=0: must be greater than 0"]),
    ],
)
def test_a_bad_student_names_file_and_key(student: Path, text: str, words: list[str]) -> None:
    student.write_text(text)
    (line,) = problems_of("--student_config", str(student))
    assert all(word in line for word in [*words, "--student_config", "student.json"]), line


def test_a_student_that_cannot_be_read(tmp_path: Path) -> None:
    (line,) = problems_of("--student_config", "no.json")
    assert line == "--student_config no.json: cannot be read: No such file or directory"
    (tmp_path / "a.json").write_bytes(b"\xff\xfe")
    (line,) = problems_of("--student_config", str(tmp_path / "a.json"))
    assert "is not UTF-8 text" in line


def test_flags_and_overrides_apply_in_the_order_given(student: Path) -> None:
    def resolved(*argv: str) -> tuple[int | None, int]:
        config = with_arguments(distillation(), argv)
        return config.train.global_batch_size, config.model.num_layers

    json = ["--student_config", str(student)]
    assert resolved("--batch_size", "2", "train.global_batch_size=16", *json) == (16, 2)
    assert resolved("train.global_batch_size=16", *json, "--batch_size", "2", "model.num_layers=1") == (None, 1)
    assert with_arguments(distillation(), ["--teacher_rank", "1", "--teacher_rank=2"]).model.teacher_rank == 2
    config = with_arguments(distillation(), ["--teacher_on_cpu", "model.teacher_device_strategy=gpu0"])
    assert config.model.teacher_device_strategy == "gpu0"


def test_flags_win_over_files_wherever_they_stand(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("train: {micro_batch_size: 4}\n")
    for argv in (["--batch_size=2", "--config-file", f"{tmp_path}/a.yaml"], [f"--config_file={tmp_path}/a.yaml"]):
        config = with_arguments(distillation(), argv)
        assert config.train.micro_batch_size == (2 if len(argv) > 1 else 4)


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (
            ["--teacher_on_cpu", "--balance_teacher"],
            "--teacher_on_cpu, --balance_teacher: contradict each other (model.teacher_device_strategy: cpu and "
            "balanced); keep one of the two [command line]",
        ),
        (
            ["--teacher-device-strategy=gpu0", "--teacher_on_cpu"],
            "--teacher_device_strategy gpu0, --teacher_on_cpu: contradict each other "
            "(model.teacher_device_strategy: gpu0 and cpu); keep one of the two [command line]",
        ),
    ],
)
def test_contradictions_are_one_line(argv: list[str], line: str) -> None:
    assert problems_of(*argv) == [line]


def test_saying_the_same_twice_is_no_contradiction() -> None:
    assert problems_of("--teacher_on_cpu", "--teacher_device_strategy", "cpu") == []


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--teacher_rnk", "3"], ["--teacher_rnk: unknown option", "did you mean --teacher_rank?"]),
        (["--teacher-dtyp=float16"], ["--teacher-dtyp=float16", "did you mean --teacher_dtype?"]),
        (["--teacher_dev", "cpu"], ["did you mean --teacher_device_strategy?", "Flags are written out"]),
        (["--batch", "2"], ["did you mean --batch_size?"]),
        (["--config", "a.yaml"], ["did you mean --config-file?"]),
        (["--learning_rate_of_sorts", "1"], ["--help lists", "section.field=value"]),
        (["-b"], ["-b: unknown option"]),
        (["--teacher_rank"], ["--teacher_rank: needs a value", "--teacher_rank N"]),
        (["--teacher_rank", "--distributed"], ["--teacher_rank: needs a value"]),
        (["--output_dir="], ["--output_dir: needs a value", "--output_dir DIR"]),
        (["--teacher_on_cpu=true"], ["--teacher_on_cpu=true: takes no value; write --teacher_on_cpu"]),
        (["--teacher_rank", "x"], ["model.teacher_rank=x: must be a whole number", "[--teacher_rank x]"]),
        (["--teacher_rank", "-1"], ["model.teacher_rank=-1: must be 0 or greater", "[--teacher_rank -1]"]),
        (["--teacher_dtype", "float17"], ["must be one of float32", "did you mean float16?", "--teacher_dtype"]),
        (["--teacher_device_strategy=balance"], ["did you mean balanced?", "[--teacher_device_strategy balance]"]),
        (["--batch_size", "0"], ["train.micro_batch_size=0: must be greater than 0", "[--batch_size 0]"]),
        (["--batch_size", "1.5"], ["must be a whole number", "[--batch_size 1.5]"]),
        (["--teacher_path", "no/such"], ["no such folder", "[--teacher_path no/such]"]),
        (["--output_dir", f"{__file__}/x"], ["is a file, not a folder", f"[--output_dir {__file__}/x]"]),
    ],
    ids=lambda value: " ".join(value)[:40],
)
def test_a_mistake_is_one_line_that_names_the_flag(argv: list[str], words: list[str]) -> None:
    found = problems_of(*argv)
    assert len(found) == 1, found
    assert all(word in found[0] for word in words), found[0]


def test_all_mistakes_are_told_at_once() -> None:
    argv = ["--batch_size", "0", "--teacher_rnk", "1", "--data_path", "no.txt", "--num_epochs=-1", "train.x=1"]
    found = problems_of(*argv, tokenizer__tokenizer_model=".")
    for word in ("--teacher_rnk", "train.x", "[--batch_size 0]", "[--data_path no.txt]", "[--num_epochs -1]"):
        assert sum(word in line for line in found) == 1, found
    assert len(found) == 5


def test_data_that_is_not_there_names_the_flag() -> None:
    (line,) = problems_of("--data_path", "no/prefix", tokenizer__tokenizer_model=".")
    assert line.startswith("dataset.data_path=[no/prefix]: no/prefix.bin and no/prefix.idx not found")
    assert line.endswith("[--data_path no/prefix]")


def test_a_recipe_without_a_teacher_has_no_place_for_one() -> None:
    with pytest.raises(ConfigError, match=r"model has no teacher .* \[--teacher_on_cpu\]"):
        with_arguments(plain(), ["--teacher_on_cpu"])
    assert with_arguments(plain(), ["--gradient_checkpointing"]).model.recompute_method == "uniform"


def test_a_problem_of_other_fields_names_no_flag() -> None:
    (line,) = problems_of("--batch_size", "2", "rng.seed=-1")
    assert line == "rng.seed=-1: must be at least 0 and less than 2^31 [command line]"
    (line,) = problems_of("--batch_size", "2", "train.global_batch_size=7")
    assert "train.micro_batch_size=2" in line and line.endswith("[command line]")


SEED_PLACES = ["--teacher_path", "{run}", "--student_config", "{student}", "--data_path", "{text}"]
SEED_SIZES = ["--output_dir", "./outputs/t2i", "--distributed", "--batch_size", "2", "--num_epochs", "10"]


@pytest.mark.parametrize("strategy", ["cpu", "balanced", "gpu0", "auto", None])
def test_the_users_command_lines(tmp_path: Path, student: Path, strategy: str | None) -> None:
    (tmp_path / "run" / "checkpoints" / "iter_0000001").mkdir(parents=True)
    (tmp_path / "prompts.txt").write_text("a prompt\n")
    places = {"run": tmp_path / "run", "student": student, "text": tmp_path / "prompts.txt"}
    argv = [*(word.format(**places) for word in SEED_PLACES), *SEED_SIZES]
    argv += ["--teacher_device_strategy", strategy] if strategy else []
    argv += ["--teacher_dtype", "float16", "--gradient_checkpointing"]
    config = check_config(distillation(tokenizer__tokenizer_model="."), argv, world_size=4).without_problems()
    assert config.model.teacher_device_strategy == (strategy or "auto")
    assert config.model.teacher_dtype == "float16"
    assert config.model.teacher.init is None
    assert config.train.num_epochs == 10
