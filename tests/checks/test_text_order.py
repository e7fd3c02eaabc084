"""Runs of older versions: a length that leaves the order of their samples alone is accepted, and no other."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_kd.checkpoints.saved_run import SavedRun
from megatron_kd.checkpoints.saved_state import BY_EPOCH, TOGETHER, RunState
from megatron_kd.checks.text_order import order_problems
from megatron_kd.config.container import ConfigContainer
from megatron_kd.config.gpt_model import GPTModelProvider
from megatron_kd.config.sections import DatasetConfig, TrainConfig
from megatron_kd.data.samples.datasets import build_datasets
from megatron_kd.data.tokens.tokenizer import NullTokenizer
from tests.data.test_epoch_order import corpus
from tests.data.tokens import write_tokens

SEQ, BATCH, STEP = 16, 2, 5


def _run(data_path: list[str | float], steps: int, batch: int = BATCH) -> ConfigContainer:
    return ConfigContainer(
        model=GPTModelProvider(seq_length=SEQ),
        train=TrainConfig(train_iters=steps, global_batch_size=batch),
        dataset=DatasetConfig(data_path=data_path, split="100,0,0"),
    )


def _remaining(cfg: ConfigContainer, samples: int) -> list[list[int]]:
    dataset, _, _ = build_datasets(
        cfg.dataset, seq_length=SEQ, train_samples=samples, valid_samples=0, test_samples=0, seed=5,
        tokenizer=NullTokenizer(1000), order=TOGETHER,
    )  # fmt: skip
    assert dataset is not None
    return [dataset[i]["tokens"].tolist() for i in range(STEP * BATCH, samples)]


@pytest.mark.parametrize("blended", [False, True])
def test_a_length_is_accepted_where_the_remaining_samples_stay(blended: bool, tmp_path: Path) -> None:
    a, b = write_tokens(tmp_path / "a", corpus(1, 20)), write_tokens(tmp_path / "b", corpus(2, 9))
    data: list[str | float] = [0.7, a, 0.3, b] if blended else [a]
    saved = SavedRun(tmp_path, _run(data, 24), RunState(STEP, 1000, layout={"dp": 1}))
    began = _remaining(saved.cfg, 24 * BATCH)
    accepted = refused = 0
    for steps in range(STEP + 1, 60, 3):
        cfg = _run(data, steps)
        now = _remaining(cfg, steps * BATCH)
        stays = all(ours == theirs for ours, theirs in zip(now, began, strict=False))
        problems = list(order_problems(cfg, saved, 1))
        assert stays or problems, f"{steps} steps read other samples"
        accepted, refused = accepted + (not problems), refused + bool(problems)
        assert all("train.train_iters" in str(problem) and "24" in str(problem) for problem in problems)
    assert accepted and refused


def test_a_run_of_todays_order_may_have_any_length(tmp_path: Path) -> None:
    data: list[str | float] = [write_tokens(tmp_path / "a", corpus(1, 20))]
    state = RunState(STEP, 1000, consumed_samples=STEP * BATCH, data_order=BY_EPOCH)
    assert not list(order_problems(_run(data, 300), SavedRun(tmp_path, _run(data, 24), state), 1))


def test_another_batch_counts_in_samples(tmp_path: Path) -> None:
    data: list[str | float] = [write_tokens(tmp_path / "a", corpus(1, 20))]
    saved = SavedRun(tmp_path, _run(data, 25), RunState(STEP, 1000, layout={"dp": 1}))
    assert saved.consumed_samples == STEP * BATCH
    assert not list(order_problems(_run(data, 15, batch=4), saved, 1))  # as many samples in all
    assert list(order_problems(_run(data, 75, batch=4), saved, 1))
