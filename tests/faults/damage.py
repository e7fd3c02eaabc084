"""Damage to the files of a checkpoint: by a bad disk, a failed copy, or an attacker."""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from megatron_kd.checkpoints.manifest import Manifest, read_manifest
from megatron_kd.runtime.files import FileRecord, sha256_of


def flip_bit(path: Path, draw: random.Random) -> None:
    """Change one bit somewhere in a file."""
    content = bytearray(path.read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)


def truncate(path: Path, draw: random.Random) -> None:
    """Cut off a part of a file's end."""
    os.truncate(path, draw.randrange(path.stat().st_size))


def remove(path: Path, draw: random.Random) -> None:
    """Delete a file."""
    path.unlink()


def append(path: Path, draw: random.Random) -> None:
    """Append random bytes to a file."""
    with path.open("ab") as file:
        file.write(draw.randbytes(draw.randrange(1, 99)))


def link(path: Path, draw: random.Random) -> None:
    """Put a link to the same content in a file's place."""
    elsewhere = path.with_name(path.name + "-elsewhere").resolve()
    elsewhere = elsewhere.parent.parent / elsewhere.name
    shutil.move(path, elsewhere)
    path.symlink_to(elsewhere)


DAMAGE: dict[str, Callable[[Path, random.Random], None]] = {
    f.__name__: f for f in (flip_bit, truncate, remove, append, link)
}


class Payload:
    """Makes a file when it is unpickled by a reader that runs what a pickle names."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


def vouch(folder: Path) -> None:
    """Make the manifest that the folder's present files would have had: its author is hostile, not its disk."""
    old = read_manifest(folder)
    files = {name: FileRecord((folder / name).stat().st_size, sha256_of(folder / name)) for name in old.files}
    (folder / "manifest.json").write_text(Manifest(old.step, old.layout, old.config_sha256, files).text())


def hostile_metadata(folder: Path, mark: Path) -> str:
    """`.metadata` with a payload beside what belongs there. Returns the file's name."""
    metadata = pickle.loads((folder / ".metadata").read_bytes())
    metadata.planner_data = Payload(mark)
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    return ".metadata"


def bare_metadata(folder: Path, mark: Path) -> str:
    """`.metadata` that is a payload."""
    (folder / ".metadata").write_bytes(pickle.dumps(Payload(mark)))
    return ".metadata"


def hostile_common(folder: Path, mark: Path) -> str:
    """`common.pt` with a payload beside what belongs there."""
    import torch

    common = torch.load(folder / "common.pt", weights_only=True)
    torch.save({**common, "more": Payload(mark)}, folder / "common.pt")
    return "common.pt"


def old_common(folder: Path, mark: Path) -> str:
    """`common.pt` that is a bare pickle, as torch once wrote them."""
    (folder / "common.pt").write_bytes(pickle.dumps(Payload(mark)))
    return "common.pt"


def hostile_object(folder: Path, mark: Path) -> str:
    """A payload as one of the objects in a `.distcp` file."""
    return _replace(folder, mark, of_tensors=False)


def hostile_tensor(folder: Path, mark: Path) -> str:
    """A payload in the place of a tensor in a `.distcp` file."""
    return _replace(folder, mark, of_tensors=True)


def elsewhere(folder: Path, mark: Path) -> str:
    """`.metadata` whose tensors are in files outside the folder."""
    metadata = pickle.loads((folder / ".metadata").read_bytes())
    for index, info in list(metadata.storage_data.items()):
        metadata.storage_data[index] = type(info)("../" + info.relative_path, info.offset, info.length)
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    return ".metadata"


def zarr(folder: Path, mark: Path) -> str:
    """`metadata.json` that asks for another reader."""
    (folder / "metadata.json").write_text(json.dumps({"sharded_backend": "zarr", "common_backend": "torch"}))
    return "metadata.json"


HOSTILE: dict[str, Callable[[Path, Path], str]] = {
    f.__name__: f
    for f in (hostile_metadata, bare_metadata, hostile_common, old_common, hostile_object, elsewhere, zarr)
}


def _replace(folder: Path, mark: Path, *, of_tensors: bool) -> str:
    metadata = pickle.loads((folder / ".metadata").read_bytes())
    for index, info in metadata.storage_data.items():  # noqa: B007
        is_tensor = hasattr(metadata.state_dict_metadata[index.fqn], "chunks")
        if is_tensor == of_tensors and "exp_avg" not in index.fqn:
            break
    path = folder / info.relative_path
    where = path.stat().st_size
    with path.open("ab") as file:
        file.write(_zipped(mark))
    metadata.storage_data[index] = type(info)(path.name, where, path.stat().st_size - where)
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    return path.name


def _zipped(mark: Path) -> bytes:
    """A payload in the container that `torch.save` makes."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as file:
        for name, data in (("data.pkl", pickle.dumps(Payload(mark), 2)), ("version", b"3\n"), ("byteorder", b"little")):
            file.writestr(f"archive/{name}", data)
    return content.getvalue()
