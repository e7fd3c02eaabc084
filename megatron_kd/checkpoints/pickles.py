"""Reading the two kinds of pickle that megatron-core's checkpoint format has, without running anything they name.

A manifest says that files are as they were written, and nothing about who wrote them. `.metadata` is a plain pickle,
which torch's own reader unpickles without restrictions, and so are the objects among the tensors of a `.distcp` file.
Here they are read first, by unpicklers that know the few classes of values such files consist of.
"""

from __future__ import annotations

import io
import os
import pickle
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from megatron_kd.errors import CheckpointCorrupt
from megatron_kd.messages import first_line

METADATA = ".metadata"
COMMON = "common.pt"

# Dataclasses, enumerations and tuples of numbers: making one does nothing else.
_VALUES = {
    "torch.distributed.checkpoint.metadata": frozenset(
        {
            "BytesStorageMetadata",
            "ChunkStorageMetadata",
            "Metadata",
            "MetadataIndex",
            "StorageMeta",
            "TensorProperties",
            "TensorStorageMetadata",
            "_MEM_FORMAT_ENCODING",
        }
    ),
    "torch.distributed.checkpoint.filesystem": frozenset({"_StorageInfo", "_StoragePrefix"}),
    # The plans that megatron-core adds to the metadata.
    "torch.distributed.checkpoint.planner": frozenset(
        {"BytesIOWriteData", "SavePlan", "TensorWriteData", "WriteItem", "WriteItemType"}
    ),
    "megatron.core.dist_checkpointing.strategies.torch": frozenset({"MCoreMetadata", "MCoreSavePlan"}),
    "torch": frozenset({"Size"}),
    "torch.serialization": frozenset({"_get_layout"}),
    "collections": frozenset({"OrderedDict"}),
}


class _Values(pickle.Unpickler):
    """Makes values of the classes above, and refuses every other name."""

    def find_class(self, module: str, name: str) -> Any:
        if name in _VALUES.get(module, ()):
            return super().find_class(module, name)
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        raise pickle.UnpicklingError(f"it names {module}.{name}, which does not belong in a checkpoint")

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError("it refers to objects outside of it")


def read_metadata(folder: Path) -> Metadata:
    """The tensors and objects of a checkpoint, with the file and the position of each.

    Raises:
        CheckpointCorrupt: names `.metadata` and the unexpected content.
    """
    path = folder / METADATA
    try:
        with open(path, "rb") as file:
            metadata = _Values(file).load()
        _refuse_nonsense(metadata, folder)
    except FileNotFoundError:
        raise CheckpointCorrupt(f"{path}: is missing") from None
    except Exception as error:  # a damaged pickle raises anything
        raise CheckpointCorrupt(f"{path}: refused: {reason(error)}") from error
    assert isinstance(metadata, Metadata)
    return metadata


def read_common(folder: Path) -> dict[str, Any]:
    """The state that all ranks share: tensors, numbers, texts and containers of them.

    Raises:
        CheckpointCorrupt: names the file.
    """
    path = folder / COMMON
    try:
        with open(path, "rb") as file:
            common = _values(file)
    except FileNotFoundError:
        raise CheckpointCorrupt(f"{path}: is missing") from None
    except Exception as error:
        raise CheckpointCorrupt(f"{path}: refused: {reason(error)}") from error
    if not isinstance(common, dict):
        raise CheckpointCorrupt(f"{path}: holds a {type(common).__name__}, not named values")
    return common


def check_objects(folder: Path, metadata: Metadata, part: int, parts: int) -> None:
    """Read every `parts`-th object that is not a tensor, from number `part` on, as megatron-core would.

    Tensors need no check: torch itself reads them with `weights_only=True`.

    Raises:
        CheckpointCorrupt: names the object and its file.
    """
    for index, info in list(_objects(metadata))[part::parts]:
        path = folder / info.relative_path
        try:
            with open(path, "rb") as file:
                _values(_slice(file, info.offset, info.length))
        except Exception as error:
            raise CheckpointCorrupt(f"{path}: {index.fqn} refused: {reason(error)}") from error


def _values(file: BinaryIO) -> Any:
    """The value that `torch.save` wrote. It never compresses, and a compressed record may expand to any size."""
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            if packed := [
                record.filename for record in archive.infolist() if record.compress_type != zipfile.ZIP_STORED
            ]:
                raise ValueError(f"its record {packed[0]!r} is compressed, which torch never does")
    file.seek(0)
    return torch.load(file, map_location="cpu", weights_only=True)


def _objects(metadata: Metadata) -> Iterator[tuple[MetadataIndex, Any]]:
    for index, info in metadata.storage_data.items():
        if isinstance(metadata.state_dict_metadata[index.fqn], BytesStorageMetadata):
            yield index, info


def _slice(file: BinaryIO, offset: int, length: int) -> io.BytesIO:
    file.seek(offset)
    return io.BytesIO(file.read(length))


def _refuse_nonsense(metadata: Any, folder: Path) -> None:
    """Values of the right classes can still name files elsewhere, or bytes that are not there."""
    if not isinstance(metadata, Metadata):
        raise ValueError(f"it holds a {type(metadata).__name__}")
    for key, described in metadata.state_dict_metadata.items():
        if not isinstance(described, (TensorStorageMetadata, BytesStorageMetadata)):
            raise ValueError(f"{key!r} is neither tensor nor object")
        if isinstance(described, TensorStorageMetadata):
            _refuse_odd_tensor(key, described)
    sizes: dict[str, int] = {}
    for index, info in metadata.storage_data.items():
        name = info.relative_path
        if index.fqn not in metadata.state_dict_metadata:
            raise ValueError(f"it places {index.fqn!r}, which it does not describe")
        if not isinstance(name, str) or Path(name).name != name or name.startswith("."):
            raise ValueError(f"it places {index.fqn!r} in {name!r}, which is not a file of this folder")
        if name not in sizes:
            sizes[name] = os.lstat(folder / name).st_size
        if not 0 <= info.offset <= info.offset + info.length <= sizes[name]:
            raise ValueError(f"it places {index.fqn!r} beyond the end of {name}")
        if info.transform_descriptors:
            raise ValueError(f"it wants {index.fqn!r} transformed by {info.transform_descriptors}")


def _refuse_odd_tensor(key: str, described: TensorStorageMetadata) -> None:
    size = described.size
    if not isinstance(size, torch.Size) or not isinstance(described.properties, TensorProperties):
        raise ValueError(f"{key!r} has no shape or kind")
    for chunk in described.chunks:
        if not isinstance(chunk, ChunkStorageMetadata) or not len(chunk.offsets) == len(chunk.sizes) == len(size):
            raise ValueError(f"{key!r} has a part that is none of its shape")


def reason(error: BaseException) -> str:
    """An error in one line: torch explains at length how to load a file regardless."""
    text = str(error) or type(error).__name__
    if named := re.search(r"[Uu]nsupported (?:global: )?GLOBAL (\S+)", text):
        return f"it names {named.group(1)}, which is not a plain value"
    if reason := re.search(r"WeightsUnpickler error: (.*)", text):
        text = reason.group(1)
    return first_line(text)
