"""Numbers that only the start of a run can tell: the batch of its ranks, the iterations of its epochs."""

from __future__ import annotations

import copy

import pytest

from megatron_kd.config.derived import derived, lr_decay_iters, lr_warmup_iters, samples_of
from megatron_kd.errors import ConfigError
from megatron_kd.resolve.at_start import with_run_length, with_tokens_at
from tests.config.base import plain


def never() -> int:
    raise AssertionError("nothing asks for the tokens")


def test_what_is_a_number_stays() -> None:
    config = plain()
    assert with_run_length(config, 2, never) is config


@pytest.mark.parametrize(("world_size", "batch"), [(1, 3), (2, 6), (4, 12)])
def test_the_batch_is_a_micro_batch_a_data_parallel_rank(world_size: int, batch: int) -> None:
    config = plain(train__global_batch_size=None, train__micro_batch_size=3)
    assert with_run_length(config, world_size, never).train.global_batch_size == batch
    values = derived(config, world_size)
    assert (values.global_batch_size, values.num_microbatches) == (batch, 1)


def test_ranks_that_share_a_model_share_its_batch() -> None:
    config = plain(
        train__global_batch_size=None, model__tensor_model_parallel_size=2, model__pipeline_model_parallel_size=2
    )
    assert with_run_length(config, 8, never).train.global_batch_size == 2


@pytest.mark.parametrize(
    ("epochs", "tokens", "steps"),
    [
        (1.0, 81, 2),  # 8 samples of 10 tokens, and the last one's label
        (1.0, 80, 1),  # without that label 7 samples, so one batch of 4
        (2.0, 81, 4),  # 16 samples, over the seam
        (0.5, 162, 2),
        (3.0, 1000, 74),  # 299 samples, the last 3 left out
    ],
)
def test_epochs_become_whole_batches(epochs: float, tokens: int, steps: int) -> None:
    assert samples_of(epochs, tokens, seq_length=10) // 4 == steps
    config = plain(train__num_epochs=epochs, train__train_iters=None, train__global_batch_size=4, model__seq_length=10)
    before = copy.deepcopy(config)
    result = with_run_length(config, 1, lambda: tokens)
    assert (result.train.train_iters, result.train.num_epochs) == (steps, None)
    assert config == before


def test_epochs_that_fill_no_batch_are_an_error() -> None:
    config = plain(train__num_epochs=1.0, train__train_iters=None, train__global_batch_size=4, model__seq_length=10)
    with pytest.raises(ConfigError) as caught:
        with_run_length(config, 1, lambda: 11)
    (line,) = caught.value.lines
    assert line.startswith("train.num_epochs=1.0: the training split has 11 tokens")
    assert "set train.num_epochs=4 or more" in line
    config.train.num_epochs = 4.0
    assert with_run_length(config, 1, lambda: 11).train.train_iters == 1


def test_epochs_of_conversations_are_counted_in_rows() -> None:
    config = plain(
        train__num_epochs=2.5,
        train__train_iters=None,
        train__global_batch_size=4,
        dataset__mock=False,
        dataset__chat=True,
    )
    assert with_run_length(config, 1, lambda: 10).train.train_iters == 6
    config.train.num_epochs = 1.0
    with pytest.raises(ConfigError, match=r"has 3 sequences of conversations.*set train.num_epochs=2 or more"):
        with_run_length(config, 1, lambda: 3)


def test_the_schedule_follows_the_epochs_unless_it_is_set() -> None:
    config = plain(train__num_epochs=1.0, train__train_iters=None, scheduler__lr_warmup_fraction=0.5)
    assert (lr_decay_iters(config), lr_warmup_iters(config)) == (None, None)
    with pytest.raises(ConfigError, match="length of the run is not known"):
        derived(config, 1)
    values = derived(with_run_length(config, 1, lambda: 1024 * 8 * 30 + 1), 1)
    assert (values.train_iters, values.lr_decay_iters, values.lr_warmup_iters) == (30, 30, 15)
    config.scheduler.lr_decay_iters = 7
    assert derived(with_run_length(config, 1, lambda: 1024 * 8 * 30 + 1), 1).lr_decay_iters == 7


def test_tokenised_text_takes_the_place_of_text() -> None:
    config = with_tokens_at(plain(dataset__text_path="a.txt"), "runs/x/data/a")
    assert (config.dataset.text_path, config.dataset.data_path) == (None, ["runs/x/data/a"])
