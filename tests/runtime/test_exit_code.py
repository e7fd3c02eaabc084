"""`run_dir/exit_code`: one file for all ranks, which tells the cause."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
from pathlib import Path

import pytest

from megatron_kd.runtime.exit_code import (
    put_back_exit_code,
    read_exit_code,
    record_exit_code,
    reserve_exit_code,
    set_aside_exit_code,
)
from tests.runtime.test_lock import holder


def recorded(run_dir: Path) -> str:
    return (run_dir / "exit_code").read_text()


def test_the_folder_is_made(tmp_path: Path) -> None:
    record_exit_code(tmp_path / "a/b", 0)
    assert recorded(tmp_path / "a/b") == "0\n"


@pytest.mark.parametrize(
    ("codes", "told"),
    [((0, 1), 1), ((1, 17), 17), ((2, 1), 2), ((75, 2), 2), ((18, 2, 1), 18), ((17, 18), 17), ((0, 75), 75),
     ((0, 0), 0), ((137, 0), 137)],
)  # fmt: skip
def test_the_cause_is_told_in_whatever_order_ranks_end(codes: tuple[int, ...], told: int, tmp_path: Path) -> None:
    for number, order in enumerate(itertools.permutations(codes)):
        for code in order:
            record_exit_code(tmp_path / str(number), code)
        assert recorded(tmp_path / str(number)) == f"{told}\n"


def test_of_a_rank_that_fails_and_one_that_is_asked_to_stop_the_first_is_the_cause(tmp_path: Path) -> None:
    for first, second in ((75, 1), (1, 75)):
        for code in (first, second):
            record_exit_code(tmp_path / str(first), code)
        assert read_exit_code(tmp_path / str(first)) == first
    record_exit_code(tmp_path / "75", 1, known_first=True)  # its launcher knows that it was killed before
    assert read_exit_code(tmp_path / "75") == 1
    record_exit_code(tmp_path / "17", 17)
    record_exit_code(tmp_path / "17", 1, known_first=True)
    assert read_exit_code(tmp_path / "17") == 17
    assert read_exit_code(tmp_path / "none") is None


def test_ranks_may_write_at_the_same_time(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    ranks = [context.Process(target=record_exit_code, args=(tmp_path, code)) for code in (1, 17, 1, 0, 1, 2)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(30)
    assert [rank.exitcode for rank in ranks] == [0] * 6
    assert recorded(tmp_path) == "17\n"


def test_a_new_attempt_forgets_the_last(tmp_path: Path) -> None:
    set_aside_exit_code(tmp_path)  # there is none yet
    record_exit_code(tmp_path, 17)
    set_aside_exit_code(tmp_path)
    record_exit_code(tmp_path, 0)
    put_back_exit_code(tmp_path)
    assert recorded(tmp_path) == "0\n"
    assert [path.name for path in tmp_path.iterdir()] == ["exit_code"]


@pytest.mark.parametrize("accepted", [False, True])
def test_a_refusal_leaves_the_code_of_a_run_that_has_begun(accepted: bool, tmp_path: Path) -> None:
    record_exit_code(tmp_path, 0)
    (tmp_path / "run_config.yaml").write_text("")
    set_aside_exit_code(tmp_path)
    if accepted:
        reserve_exit_code(tmp_path)
    record_exit_code(tmp_path, 2)
    put_back_exit_code(tmp_path)
    assert recorded(tmp_path) == ("2\n" if accepted else "0\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["exit_code", "run_config.yaml"]


def test_a_refusal_is_recorded_where_no_run_has_begun(tmp_path: Path) -> None:
    record_exit_code(tmp_path, 2)
    assert recorded(tmp_path) == "2\n"


def test_what_another_run_will_need_is_left_alone(tmp_path: Path) -> None:
    record_exit_code(tmp_path, 75)  # of one of its ranks
    pid = holder(tmp_path, "another")
    try:
        record_exit_code(tmp_path, 17)
        assert read_exit_code(tmp_path) is None
        set_aside_exit_code(tmp_path)
        assert recorded(tmp_path) == "75\n"
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    record_exit_code(tmp_path, 17)
    assert recorded(tmp_path) == "17\n"
