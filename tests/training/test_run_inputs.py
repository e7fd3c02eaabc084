"""The inputs of a run on two ranks: one tokenises the text, and all have the same lengths."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from megatron_kd.config.container import ConfigContainer
from megatron_kd.config.sections import DatasetConfig, TokenizerConfig
from megatron_kd.data.tokens.byte_bpe import train_byte_bpe
from megatron_kd.data.tokens.tokenizer import load_tokenizer
from megatron_kd.errors import InputError
from megatron_kd.runtime.start import running_ranks
from megatron_kd.runtime.together import on_rank_0
from megatron_kd.training.run_inputs import with_known_length
from tests.ranks import run_ranks
from tests.tiny import tiny_config

LINES = [f"line {number} of some text about {number % 7} things" for number in range(200)]


def text_config(folder: Path, **train: object) -> ConfigContainer:
    """A run in `folder`/run on a text file of `LINES`."""
    (folder / "some.txt").write_text("".join(f"{line}\n" for line in LINES))
    if not (folder / "tokenizer").exists():
        train_byte_bpe(LINES, 300, folder / "tokenizer")
    cfg = tiny_config(folder / "run", student={"vocab_size": None}, teacher={"vocab_size": None})
    return replace(
        cfg,
        dataset=DatasetConfig(text_path=str(folder / "some.txt"), split="9,1,0"),
        tokenizer=TokenizerConfig(tokenizer_model=str(folder / "tokenizer")),
        train=replace(cfg.train, **train),
    )


def prepared(cfg: ConfigContainer) -> ConfigContainer | str:
    """On a rank: the configuration as it is run, or what is wrong with it."""
    with running_ranks(tensor_model_parallel_size=1, pipeline_model_parallel_size=1, seed=1) as layout:
        try:
            return with_known_length(cfg, layout, load_tokenizer(cfg.tokenizer))
        except InputError as error:
            return str(error)


@pytest.mark.parametrize("world_size", [1, 2])
def test_every_rank_has_the_same_numbers(tmp_path: Path, world_size: int) -> None:
    cfg = text_config(tmp_path, train_iters=None, num_epochs=2.0, global_batch_size=None, micro_batch_size=4)
    results = run_ranks(world_size, prepared, cfg)
    assert all(result == results[0] for result in results)
    train, data = results[0].train, results[0].dataset
    tokenizer = load_tokenizer(cfg.tokenizer)
    tokens = sum(len(tokenizer.encode(line)) + 1 for line in LINES[:180])  # the first nine tenths of the documents
    batch = 4 * world_size
    assert (train.global_batch_size, train.num_epochs) == (batch, None)
    assert train.train_iters == (2 * tokens - 1) // 16 // batch
    assert (data.text_path, data.data_path) == (None, [str(tmp_path / "run/data/some")])


def test_what_rank_0_cannot_read_ends_all_ranks(tmp_path: Path) -> None:
    cfg = text_config(tmp_path)
    (tmp_path / "some.txt").write_bytes(b"\xff\n")
    for result in run_ranks(2, prepared, cfg):
        assert "some.txt:1: not UTF-8 text" in result


def test_a_schedule_that_does_not_fit_is_found_when_the_data_is_counted(tmp_path: Path) -> None:
    cfg = text_config(tmp_path, train_iters=None, num_epochs=1.0)
    cfg = replace(cfg, scheduler=replace(cfg.scheduler, lr_warmup_iters=10_000))
    (result,) = run_ranks(1, prepared, cfg)
    assert "scheduler.lr_warmup_iters=10000, train.train_iters=" in result
    assert "the warm-up must end before the decay does" in result


def rank_0_says(word: str) -> str:
    from torch.distributed import get_rank

    return on_rank_0(lambda: f"{word} {get_rank()}")


def test_work_of_rank_0_reaches_all() -> None:
    assert run_ranks(2, rank_0_says, "rank") == ["rank 0", "rank 0"]
