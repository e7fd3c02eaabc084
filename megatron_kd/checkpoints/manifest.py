"""`manifest.json`: what a checkpoint folder holds, byte for byte, and what it is of. Written last."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from megatron_kd.checkpoints.contents import MANIFEST
from megatron_kd.errors import CheckpointCorrupt
from megatron_kd.runtime.files import FileRecord

_FORMAT = 1
_SHA256 = re.compile(r"[0-9a-f]{64}")
_IGNORED = ".nfs"  # what NFS calls a file that was deleted while another process had it open


@dataclass(frozen=True)
class Manifest:
    """The content of `manifest.json`.

    Attributes:
        step: finished steps of the run; 0 for weights alone.
        layout: sizes of the parallel layout it was written at, by name; empty for weights alone.
        config_sha256: of the `run_config.yaml` beside it.
        files: all other files of the folder, by name.
    """

    step: int
    layout: Mapping[str, int]
    config_sha256: str
    files: Mapping[str, FileRecord]

    def text(self) -> str:
        """The file's text. It ends with a hash of itself, and there is one spelling: a changed byte shows."""
        content: dict[str, Any] = {
            "format": _FORMAT,
            "step": self.step,
            "layout": dict(self.layout),
            "config_sha256": self.config_sha256,
            "files": {name: asdict(self.files[name]) for name in sorted(self.files)},
        }
        content["sha256"] = hashlib.sha256(json.dumps(content).encode()).hexdigest()
        return json.dumps(content, indent=1) + "\n"


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a checkpoint folder. Whether the files are as it says is for `files.why_not`.

    Raises:
        CheckpointCorrupt: none there, or not as it was written.
    """
    path = folder / MANIFEST
    try:
        if path.is_symlink():
            raise ValueError("it is a link")
        text = path.read_text(encoding="utf-8")
        manifest = _parsed(json.loads(text))
        intact = manifest.text() == text
    except FileNotFoundError:
        raise CheckpointCorrupt(
            f"{folder}: has no {MANIFEST}, so nothing says whether it is complete; it was copied in part, or written "
            "before checkpoints had one"
        ) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointCorrupt(f"{path}: cannot be read as a manifest: {error}") from error
    if not intact:
        raise CheckpointCorrupt(f"{path}: has other content than was written")
    return manifest


def _parsed(content: Any) -> Manifest:
    if content["format"] != _FORMAT:
        raise ValueError(f"format {content['format']!r} is not {_FORMAT}")
    files = {}
    for name, record in content["files"].items():
        if name in ("", ".", "..", MANIFEST) or "/" in name or "\0" in name:
            raise ValueError(f"{name!r} is not the name of a file in the folder")
        if type(record["size"]) is not int or not _SHA256.fullmatch(record["sha256"]):
            raise ValueError(f"{name!r} has no size and SHA-256")
        files[name] = FileRecord(**record)
    if type(content["step"]) is not int:
        raise ValueError(f"step {content['step']!r} is not an integer")
    return Manifest(content["step"], content["layout"], content["config_sha256"], files)


def strangers(folder: Path, manifest: Manifest) -> list[str]:
    """Names in the folder that the manifest does not list."""
    known = {MANIFEST, *manifest.files}
    return sorted(p.name for p in folder.iterdir() if p.name not in known and not p.name.startswith(_IGNORED))
