"""Names of checkpoint folders, and what is deleted."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_kd.checkpoints.contents import complete_checkpoints
from megatron_kd.checkpoints.folders import (
    checkpoint_path,
    delete_leftovers,
    delete_old,
    make_partial,
    publish,
    set_aside,
)
from megatron_kd.errors import CheckpointNotSaved, InputError
from megatron_kd.runtime.space import refuse_full_disk
from tests.faults.writes import Operation, at, operations


def make(folder: Path, *steps: int) -> None:
    for step in steps:
        checkpoint_path(folder, step).mkdir(parents=True)
        (checkpoint_path(folder, step) / "file").touch()


def test_a_folder_has_its_name_once_it_is_published(tmp_path: Path) -> None:
    final = checkpoint_path(tmp_path, 3)
    first, second = make_partial(final), make_partial(final)  # an attempt that was killed, and the next
    assert first != second and not complete_checkpoints(tmp_path)
    publish(second, final)
    assert complete_checkpoints(tmp_path) == {3: final}
    with pytest.raises(InputError, match="never overwritten"):
        make_partial(final)
    delete_leftovers(tmp_path)
    assert list(tmp_path.iterdir()) == [final]


@pytest.mark.parametrize(("keep", "left"), [(None, [1, 2, 3]), (2, [2, 3]), (1, [3])])
def test_the_newest_are_kept(keep: int | None, left: list[int], tmp_path: Path) -> None:
    make(tmp_path, 1, 2, 3)
    (tmp_path / "iter_0000004.corrupt").mkdir()
    delete_old(tmp_path, keep)
    assert list(complete_checkpoints(tmp_path)) == left
    assert len(list(tmp_path.iterdir())) == len(left) + 1


def test_one_that_is_named_is_kept_besides_the_newest(tmp_path: Path) -> None:
    make(tmp_path, 1, 2, 3, 4)
    delete_old(tmp_path, 2, besides={1})
    assert list(complete_checkpoints(tmp_path)) == [1, 3, 4]
    delete_old(tmp_path, 2, besides={4})
    assert list(complete_checkpoints(tmp_path)) == [3, 4]


def test_one_that_is_being_deleted_has_no_name(tmp_path: Path) -> None:
    make(tmp_path, 1, 2)

    def look(operation: Operation) -> None:
        assert list(complete_checkpoints(tmp_path)) == [2]
        raise OSError("busy")

    with operations(tmp_path, at(0, look, lambda op: op.name == "delete")) as seen, pytest.warns(match="busy"):
        delete_old(tmp_path, 1)
    assert [op.name for op in seen] == ["rename", "delete"]
    delete_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["iter_0000002"]


def test_setting_aside_deletes_nothing(tmp_path: Path) -> None:
    for name in ("iter_0000001.corrupt", "iter_0000001.corrupt2"):
        make(tmp_path, 1)
        assert set_aside(checkpoint_path(tmp_path, 1)).name == name
    assert len(list(tmp_path.glob("*/file"))) == 2


def test_a_full_disk_is_seen_before_anything_is_written(tmp_path: Path) -> None:
    refuse_full_disk(tmp_path / "iter_0000001", 1000)
    with pytest.raises(CheckpointNotSaved, match=r"iter_0000001 was not saved: .*needs 1000000000000000 bytes, \d+ b"):
        refuse_full_disk(tmp_path / "iter_0000001", 10**15)
