"""Damaged and malicious checkpoints: each kind of fault, in each of the files, is refused by name."""

from __future__ import annotations

import pickle
import random
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from megatron_kd.checkpoints.contents import find_checkpoint
from megatron_kd.checkpoints.manifest import read_manifest
from megatron_kd.checkpoints.reading import verify
from megatron_kd.errors import CheckpointCorrupt, InputError
from tests.faults.damage import DAMAGE, HOSTILE, Payload, hostile_tensor, vouch
from tests.ranks import run_ranks

Copy = Callable[[str], Path]


def test_the_manifest_lists_each_file(run_dir: Path) -> None:
    folder = run_dir / "checkpoints/iter_0000004"
    manifest = read_manifest(folder)
    assert manifest.step == 4 and manifest.layout == {"tp": 1, "pp": 1, "dp": 2, "world_size": 2}
    assert {*manifest.files, "manifest.json"} == {path.name for path in folder.iterdir()}
    assert {"__0_0.distcp", "__1_0.distcp", "common.pt", ".metadata", "run_state.json"} <= manifest.files.keys()
    assert manifest.config_sha256 == manifest.files["run_config.yaml"].sha256


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_of_any_file_is_found(kind: str, copied: Copy) -> None:
    draw = random.Random(1)
    for name in sorted(path.name for path in copied("whole").iterdir()):
        folder = copied(f"{kind} {name}")
        DAMAGE[kind](folder / name, draw)
        with pytest.raises(CheckpointCorrupt) as refused:
            verify(folder)
        assert str(folder / name) in str(refused.value) or (name, kind) == ("manifest.json", "remove")


def test_every_bit_of_a_manifest_counts(copied: Copy) -> None:
    folder = copied("manifest")
    content = (folder / "manifest.json").read_bytes()
    for bit in range(0, 8 * len(content), 7):  # each byte, and each bit of some
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        (folder / "manifest.json").write_bytes(flipped)
        with pytest.raises(CheckpointCorrupt, match=r"manifest\.json"):
            read_manifest(folder)


def test_files_of_other_checkpoints_are_found(copied: Copy, run_dir: Path) -> None:
    folder = copied("mixed")
    older = run_dir / "checkpoints/iter_0000002"
    shutil.copy(older / "__0_0.distcp", folder)
    with pytest.raises(CheckpointCorrupt, match=r"__0_0\.distcp: has other content"):
        verify(folder)
    folder = copied("surplus")
    shutil.copy(older / "__1_0.distcp", folder / "__2_0.distcp")
    with pytest.raises(CheckpointCorrupt, match=r"__2_0\.distcp: was not written with this checkpoint"):
        verify(folder)
    renamed = Path(shutil.copytree(older, folder.parent / "iter_0000003"))
    with pytest.raises(CheckpointCorrupt, match="is of step 2, the folder's name of 3"):
        verify(renamed)
    (folder / "__2_0.distcp").rename(folder / ".nfs00000000deadbeef")  # NFS leaves such files for a while
    verify(folder)


@pytest.mark.parametrize("vouched", [True, False])
@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_files_are_refused_and_nothing_runs(kind: str, vouched: bool, copied: Copy, tmp_path: Path) -> None:
    folder, mark = copied("hostile"), tmp_path / "mark"
    name = HOSTILE[kind](folder, mark)
    if vouched:  # a manifest that fits, or none, as other programs' checkpoints have none
        vouch(folder)
    else:
        (folder / "manifest.json").unlink()
    with pytest.raises(CheckpointCorrupt) as refused:
        verify(folder, need_manifest=vouched)
    assert str(folder / name) in str(refused.value)
    assert not mark.exists()


def test_the_payload_works_where_pickles_are_trusted(copied: Copy, tmp_path: Path) -> None:
    folder, mark = copied("trusted"), tmp_path / "mark"
    HOSTILE["hostile_metadata"](folder, mark)
    pickle.loads((folder / ".metadata").read_bytes())
    assert mark.is_dir()
    with pytest.raises(FileExistsError):
        pickle.loads(pickle.dumps(Payload(mark)))


def read_weights(folder: Path) -> str:
    """On a rank: what loading a plain student from `folder` says."""
    from megatron_kd.checkpoints.model_weights import load_weights
    from megatron_kd.runtime.start import running_ranks
    from tests.tiny import STUDENT, VOCAB

    with running_ranks(tensor_model_parallel_size=1, pipeline_model_parallel_size=1, seed=1) as layout:
        model = STUDENT.provide(layout, padded_vocab_size=256, vocab_size=VOCAB)
        try:
            load_weights([model], folder, "checkpoint.pretrained_checkpoint")
        except CheckpointCorrupt as error:
            return str(error)
    return "loaded"


def test_all_ranks_have_the_same_verdict(copied: Copy, tmp_path: Path) -> None:
    whole = copied("whole")
    assert run_ranks(2, read_weights, whole) == ["loaded"] * 2
    damaged = copied("damaged")
    DAMAGE["flip_bit"](damaged / "__1_0.distcp", random.Random(2))
    said = run_ranks(2, read_weights, damaged)
    assert said[0] == said[1] and str(damaged / "__1_0.distcp") in said[0]
    hostile, mark = copied("hostile"), tmp_path / "mark"
    hostile_tensor(hostile, mark)
    vouch(hostile)
    said = run_ranks(2, read_weights, hostile)
    assert all("mkdir" in text and str(hostile) in text for text in said), said
    assert not mark.exists()


def test_megatrons_tracker_file_is_data(copied: Copy) -> None:
    folder = copied("megatron")
    (folder / "manifest.json").unlink()
    tracker = folder.parent / "latest_checkpointed_iteration.txt"
    tracker.write_text("4\n")
    assert find_checkpoint(folder.parent, "x") == folder
    assert verify(folder, need_manifest=False).manifest is None
    for content in (b"", b"release", b"\xff\x00\x01", b"-4", b"4; rm -rf /", b"../../4", b"9" * 60, b"7"):
        tracker.write_bytes(content)
        with pytest.raises(InputError, match=r"latest_checkpointed_iteration\.txt (holds|names)"):
            find_checkpoint(folder.parent, "x")


def test_an_archive_that_is_compressed_is_refused_before_it_is_unpacked(copied: Copy) -> None:
    folder = copied("compressed")
    with zipfile.ZipFile(folder / "common.pt") as whole:
        records = {name: whole.read(name) for name in whole.namelist()}
    with zipfile.ZipFile(folder / "common.pt", "w", zipfile.ZIP_DEFLATED) as packed:
        for name, content in records.items():
            packed.writestr(name, content)
    vouch(folder)
    with pytest.raises(CheckpointCorrupt, match=r"common\.pt: refused: its record '.*' is compressed"):
        verify(folder)
