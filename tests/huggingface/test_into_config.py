"""`hf_path` in a configuration: what it fills in, what gives way to it, and what is refused, each in one line."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from megatron_kd.checks import problems
from megatron_kd.commands.cli import main
from megatron_kd.config.container import ConfigContainer
from megatron_kd.config.gpt_distillation import GPTDistillationProvider
from megatron_kd.config.gpt_model import GPTModelProvider
from megatron_kd.config.run_config import save_run_config
from megatron_kd.config.sections import DatasetConfig, TokenizerConfig
from megatron_kd.data.tokens.byte_bpe import train_byte_bpe
from megatron_kd.errors import ConfigError
from megatron_kd.huggingface.architecture import provider_from_hf
from megatron_kd.huggingface.into_config import with_huggingface
from megatron_kd.resolve.configuration import check_config, config_from_file, merge
from megatron_kd.resolve.recipe_files import load_recipe
from tests.config.base import RECIPE
from tests.huggingface.families import VOCAB, save

QWEN, MISTRAL = "qwen3, q/k norm", "mistral, heads wider than hidden"


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with its tokenizer."""
    folder = save(QWEN, tmp_path_factory.mktemp("qwen"))
    train_byte_bpe([f"{n} cats on a mat" for n in range(300)], 270, folder)
    return folder


def checked(*argv: str, recipe: Any = None) -> tuple[ConfigContainer, list[str]]:
    merged = check_config(recipe or load_recipe(RECIPE)(), list(argv))
    return merged.config, [str(problem) for problem in merged.problems]


def test_a_folder_on_the_command_line_is_architecture_and_weights_whatever_the_recipe_has(qwen: Path) -> None:
    cfg, wrong = checked(f"model.hf_path={qwen}", f"model.teacher.hf_path={qwen}")
    assert wrong == []
    expected = provider_from_hf(qwen)
    student = {name: getattr(cfg.model, name) for name in vars(expected)}
    assert GPTModelProvider(**student) == expected and expected.qk_layernorm and expected.vocab_size == VOCAB
    assert isinstance(cfg.model, GPTDistillationProvider)
    assert cfg.model.teacher == expected


def test_fields_beside_a_folder_must_agree_with_it(qwen: Path) -> None:
    words = [f"model.teacher.hf_path={qwen}", "model.teacher.num_layers=4", "model.teacher.kv_channels=8"]
    assert checked(*words)[1] == []
    line, *more = checked(*words, "model.teacher.num_layers=5")[1]
    assert more == []
    assert line == (
        f"model.teacher.num_layers=5, model.teacher.hf_path={qwen}: the folder's config.json means num_layers=4 "
        "(num_hidden_layers); leave model.teacher.num_layers out [command line]"
    )
    recipe = load_recipe(RECIPE)()
    recipe.model.hf_path, recipe.model.init = str(qwen), None  # a recipe's own folder, beside its own sizes
    lines = checked(recipe=recipe)[1]
    assert [line.partition("=")[0] for line in lines] == ["model.hidden_size", "model.vocab_size"]
    assert all("[recipe]" in line for line in lines)


def test_weights_come_from_one_place(qwen: Path) -> None:
    (line,) = checked(f"model.hf_path={qwen}", "model.init=random")[1]
    assert line.startswith(f"model.init=random, model.hf_path={qwen}: the student has weights from two places")
    (line,) = checked(f"model.hf_path={qwen}", f"checkpoint.pretrained_checkpoint={qwen}")[1]
    assert "the student has weights from two places" in line
    (line,) = checked(f"model.teacher.checkpoint={qwen}", "model.teacher.init=null")[1]
    assert f"is a Hugging Face folder; set model.teacher.checkpoint=null model.teacher.hf_path={qwen}" in line


def test_the_flag_for_a_teacher_takes_either_kind_of_folder(qwen: Path) -> None:
    cfg, wrong = checked("--teacher_path", str(qwen))
    assert wrong == [] and isinstance(cfg.model, GPTDistillationProvider)
    teacher = cfg.model.teacher
    assert (teacher.hf_path, teacher.checkpoint, teacher.num_layers) == (str(qwen), None, 4)
    (line,) = checked("--teacher_path", str(qwen.parent))[1]
    assert line.startswith(f"model.teacher.checkpoint={qwen.parent}: there is no checkpoint in this folder")


def test_a_window_shorter_than_the_sequence_is_refused(tmp_path: Path) -> None:
    folder = save(MISTRAL, tmp_path, sliding_window=32)
    words = [f"model.teacher.hf_path={folder}", "model.teacher.seq_length=32"]
    assert checked(*words, "model.seq_length=32")[1] == []
    (line,) = checked(*words, "model.seq_length=33", "model.teacher.seq_length=33")[1]
    assert "attend to 32 tokens at most" in line and "set model.seq_length=32 or less" in line


def test_the_tokenizer_comes_with_the_model(qwen: Path, tmp_path: Path) -> None:
    bare = save(QWEN, tmp_path / "bare")
    text = tmp_path / "text.txt"
    text.write_text("cats\n")
    text_data = ["dataset.mock=false", f"dataset.text_path={text}"]
    cfg, wrong = checked(f"model.hf_path={qwen}", f"model.teacher.hf_path={bare}", *text_data)
    assert wrong == [] and cfg.tokenizer.tokenizer_model == str(qwen)
    assert cfg.tokenizer.teacher_tokenizer_model is None
    cfg, wrong = checked(f"model.hf_path={bare}", f"model.teacher.hf_path={qwen}", *text_data)
    assert wrong == [] and cfg.tokenizer.tokenizer_model == str(qwen)
    other = train_other(tmp_path / "other")
    words = [f"model.teacher.hf_path={qwen}", f"tokenizer.tokenizer_model={other}", *text_data]
    cfg, wrong = checked(*words)
    assert wrong == [] and cfg.tokenizer.teacher_tokenizer_model == str(qwen)  # to be compared at the start


def test_a_tokenizer_that_disagrees_with_the_teachers_is_refused_before_ranks_start(qwen: Path, tmp_path: Path) -> None:
    import torch

    from megatron_kd.training.train import train

    text = tmp_path / "text.txt"
    text.write_text("cats\n")
    words = [f"model.teacher.hf_path={qwen}", f"tokenizer.tokenizer_model={train_other(tmp_path / 'other')}"]
    words += ["dataset.mock=false", f"dataset.text_path={text}"]
    with pytest.raises(ConfigError, match="stand for different tokens"):
        train(checked(*words)[0])
    assert not torch.distributed.is_initialized()


def train_other(folder: Path) -> Path:
    train_byte_bpe([f"{n} dogs" for n in range(300)], 265, folder)
    return folder


def test_a_saved_run_reads_back_equal(qwen: Path, tmp_path: Path) -> None:
    cfg = checked(f"model.hf_path={qwen}", f"model.teacher.hf_path={qwen}")[0]
    save_run_config(cfg, tmp_path / "run_config.yaml")
    assert config_from_file(tmp_path / "run_config.yaml") == cfg
    assert with_huggingface(cfg) == cfg


def test_a_configuration_made_in_python(qwen: Path, tmp_path: Path) -> None:
    made = GPTDistillationProvider.from_hf(
        GPTModelProvider(init="random", vocab_size=VOCAB), teacher=qwen, seq_length=64, teacher_dtype="bfloat16"
    )
    assert (made.seq_length, made.teacher.seq_length, made.teacher.num_layers) == (64, 64, 4)
    assert problems(ConfigContainer(model=made, dataset=DatasetConfig(mock=True))) == []
    bare = GPTDistillationProvider.from_student(made, teacher=GPTModelProvider(hf_path=str(qwen)))
    assert with_huggingface(ConfigContainer(model=bare)).model.teacher == replace(made.teacher, seq_length=1024)
    with pytest.raises(ConfigError, match="there is no such folder"):
        GPTDistillationProvider.from_hf(tmp_path / "nowhere", teacher=qwen)
    with pytest.raises(ConfigError, match=r"model.teacher.hf_path=.*there is no such folder"):
        with_huggingface(
            ConfigContainer(model=replace(bare, teacher=GPTModelProvider(hf_path=str(tmp_path / "nowhere"))))
        )


@pytest.mark.parametrize("model", ["model", "model.teacher"])
def test_validate_says_what_is_wrong_with_a_folder(
    model: str, qwen: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "gemma2"}')
    for folder, said in (
        (tmp_path, "model_type='gemma2' is not supported"),
        (tmp_path / "x", "there is no such folder"),
    ):
        assert main(["validate", str(RECIPE), f"{model}.hf_path={folder}"]) == 2
        out, err = capsys.readouterr()
        assert out == "" and len(err.splitlines()) == 1 and said in err
        assert err.startswith(f"error: {model}.hf_path={folder}: ")
    assert main(["validate", str(RECIPE), f"{model}.hf_path={qwen}"]) == 0
    section: Any = yaml.safe_load(capsys.readouterr().out)
    for name in model.split("."):
        section = section[name]
    assert section["num_layers"] == 4


def test_the_commands_end_with_one_line(qwen: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["import-hf", str(qwen), "--output", str(tmp_path / "imported")]) == 0
    assert main(["export-hf", str(tmp_path / "imported"), "--output", str(tmp_path / "again"), "--dtype=float16"]) == 0
    assert capsys.readouterr().out.splitlines() == [f"wrote {tmp_path / 'imported'}", f"wrote {tmp_path / 'again'}"]
    assert (tmp_path / "again" / "tokenizer.json").is_file()
    for words, said in (
        (["import-hf", str(tmp_path), "--output", str(tmp_path / "y")], "there is no config.json in this folder"),
        (["import-hf", str(qwen), "--output", str(tmp_path / "imported")], "is already there"),
        (["export-hf", str(qwen), "--output", str(tmp_path / "y")], "no checkpoint there"),
    ):
        assert main(words) == 2
        assert said in capsys.readouterr().err and not (tmp_path / "y").exists()


def test_a_recipes_tokenizer_gives_way_to_that_of_a_folder_on_the_command_line(qwen: Path, tmp_path: Path) -> None:
    other = train_other(tmp_path / "other")
    text = tmp_path / "text.txt"
    text.write_text("cats\n")
    recipe = replace(
        load_recipe(RECIPE)(),
        tokenizer=TokenizerConfig(tokenizer_model=str(other)),
        dataset=DatasetConfig(data_path=["mine"]),
    )
    folders = [f"model.hf_path={qwen}", f"model.teacher.hf_path={qwen}"]
    merged = merge(recipe, [*folders, "~dataset.data_path", f"dataset.text_path={text}"])
    assert merged.config.tokenizer.tokenizer_model == str(qwen)
    assert merged.config.tokenizer.teacher_tokenizer_model is None
    assert merged.origins["tokenizer.tokenizer_model"] == f"{qwen}/tokenizer.json"
    assert merged.notes == (
        f"tokenizer.tokenizer_model={qwen}: the tokenizer of model.hf_path, in place of the recipe's, {other}",
    )
    assert merged.problems == ()
    (problem,) = merge(recipe, folders).problems  # the recipe's data are ids of the recipe's tokenizer
    assert "gives way to that of model.hf_path" in str(problem)
    for kept in ([f"model.teacher.hf_path={qwen}"], [*folders, f"tokenizer.tokenizer_model={other}"]):
        merged = merge(recipe, kept)
        assert merged.config.tokenizer.tokenizer_model == str(other) and merged.notes == ()
