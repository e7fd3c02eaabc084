"""A run on a text file, which has become tokens in its folder, is compared by the text."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from megatron_kd.checkpoints.saved_run import read_saved_run
from megatron_kd.checks.begun import resume_problems
from megatron_kd.config.container import ConfigContainer
from megatron_kd.config.gpt_model import GPTModelProvider
from megatron_kd.config.sections import DatasetConfig, TokenizerConfig
from megatron_kd.data.tokens.byte_bpe import train_byte_bpe
from megatron_kd.resolve.configuration import config_from_file
from tests.ranks import run_ranks
from tests.tiny import tiny_config, train_and_read

TEXT = "".join(f"line {n}: {'the quick brown fox ' * (n % 5 + 1)}\n" for n in range(200))


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> ConfigContainer:
    """A run of two steps on a text file."""
    folder = tmp_path_factory.mktemp("begun")
    (folder / "prompts.txt").write_text(TEXT)
    size = train_byte_bpe([TEXT], 270, folder / "tokenizer")
    cfg = tiny_config(folder / "run", iters=2, save=True, distilled=False, student={"vocab_size": size})
    cfg.dataset = DatasetConfig(text_path=str(folder / "prompts.txt"), split="90,10,0")
    cfg.tokenizer = TokenizerConfig(tokenizer_model=str(folder / "tokenizer"))
    run_ranks(1, train_and_read, cfg)
    return cfg


def refused(cfg: ConfigContainer, **dataset: object) -> list[str]:
    """The fields that a resume with other data is refused for."""
    cfg = replace(cfg, dataset=replace(cfg.dataset, **dataset))
    return [problem.fields[0].name for problem in resume_problems(cfg, 1)]


def test_the_same_text_is_the_same_run_wherever_it_lies(begun: ConfigContainer, tmp_path: Path) -> None:
    copy = shutil.copy(str(begun.dataset.text_path), tmp_path / "renamed.txt")
    assert refused(begun) == refused(begun, text_path=str(copy)) == []
    assert refused(config_from_file(Path(begun.logger.run_dir) / "run_config.yaml")) == []


def test_another_text_is_another_run(begun: ConfigContainer, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text(TEXT.replace("line 7:", "line 8:"))
    assert refused(begun, text_path=str(tmp_path / "prompts.txt")) == ["dataset.text_path"]


def test_a_text_that_has_changed_is_named(begun: ConfigContainer) -> None:
    file = Path(str(begun.dataset.text_path))
    file.write_text(TEXT + "one more\n")
    (problem,) = resume_problems(begun, 1)
    file.write_text(TEXT)
    assert f"the content of {file} has changed since the run began; put the file back, or start" in str(problem)


def test_data_that_is_left_out_is_no_other_split(begun: ConfigContainer) -> None:
    assert refused(begun, text_path=None) == ["dataset.data_path"]


def test_a_folder_that_cannot_be_read_is_no_other_model(begun: ConfigContainer) -> None:
    """Its sizes are unknown: here the class defaults are in their place."""
    moved = replace(begun, model=GPTModelProvider(hf_path="moved", seq_length=begun.model.seq_length))
    assert {p.fields[0].name for p in resume_problems(moved, 1)} == {"model.hf_path", "model.init"}


def test_another_tokenizer_of_the_same_size_is_another_run(begun: ConfigContainer, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(str(begun.tokenizer.tokenizer_model), tmp_path / "tokenizer"))
    moved = replace(begun, tokenizer=replace(begun.tokenizer, tokenizer_model=str(folder)))
    assert refused(moved) == []
    content = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(content.replace('"fox"', '"foxes"') + " ")
    assert refused(moved) == ["tokenizer.tokenizer_model"]


def test_an_older_checkpoint_has_no_digests_and_no_position(begun: ConfigContainer, tmp_path: Path) -> None:
    run_dir = Path(shutil.copytree(begun.logger.run_dir, tmp_path / "run"))
    checkpoint = run_dir / "checkpoints/iter_0000002"
    state = json.loads((checkpoint / "run_state.json").read_text())
    for name in ("consumed_samples", "data_order", "inputs"):
        del state[name]
    (checkpoint / "run_state.json").write_text(json.dumps(state))
    saved = read_saved_run(checkpoint)
    assert saved is not None and saved.consumed_samples == 16 and saved.data_order == "together"
    older = replace(begun, logger=replace(begun.logger, run_dir=str(run_dir)))
    assert refused(older) == []
    (tmp_path / "prompts.txt").write_text(TEXT + "one more\n")
    assert refused(older, text_path=str(tmp_path / "prompts.txt")) == ["dataset.text_path"]
