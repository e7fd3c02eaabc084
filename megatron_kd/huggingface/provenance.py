"""The Hugging Face model that a checkpoint's weights come from: its name on the hub, and its licence."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from megatron_kd.checkpoints.contents import find_checkpoint
from megatron_kd.config.document import read_document
from megatron_kd.config.hub_names import looks_like_hub_name
from megatron_kd.config.run_config import RUN_CONFIG
from megatron_kd.errors import InputError
from megatron_kd.huggingface.other_folders import CONFIG_FILE

_CACHED = re.compile(r"models--([\w.-]+?)--([\w.-]+)")  # a folder of the hub's cache
_LICENCES = ("LICENSE", "LICENSE.txt", "LICENSE.md", "LICENCE", "LICENCE.txt")
_KNOWN = (
    (re.compile(r"apache license\s+version 2\.0"), "apache-2.0"),
    (re.compile(r"mit license|permission is hereby granted, free of charge"), "mit"),
    (re.compile(r"llama (\d(?:\.\d)?) community license"), r"llama\1"),
    (re.compile(r"gnu general public license\s+version 3"), "gpl-3.0"),
)
_HEAD = 4096  # characters that name a licence
_MOST_STEPS = 16  # from a checkpoint to the one that it began from


@dataclass(frozen=True)
class Base:
    """A model that others are made of: its name, as the hub has it where that is known, and its folder."""

    name: str
    folder: Path


@dataclass(frozen=True)
class Licence:
    """A licence as model cards have it.

    Attributes:
        front: `license` and, for one that the hub has no word for, `license_name` and `license_link`.
        file: its text, to be copied, where the folder has it.
    """

    front: dict[str, str]
    file: Path | None


def student_base(run: dict[str, Any]) -> Base | None:
    """The model that the student of a run began as, through the checkpoints in between, as far as they are there.

    Args:
        run: the content of a `run_config.yaml`.

    Returns:
        None for random weights, and where it is not known.
    """
    return model_base(_start_of_student(run))


def model_base(model: dict[str, Any]) -> Base | None:
    """The model that a teacher, or a model that was made of one, began as; see `student_base`."""
    for _ in range(_MOST_STEPS):
        if model.get("hf_path"):
            folder = Path(model["hf_path"])
            return Base(hub_name(folder), folder)
        run = _run_of(model.get("checkpoint"))
        if run is None:
            return None
        model = _start_of_student(run)
    return None


def hub_name(folder: Path) -> str:
    """The name of a model on the hub, by the hub's cache or by its `config.json`; else its folder's own name."""
    for part in reversed(folder.parts):
        if cached := _CACHED.fullmatch(part):
            return "/".join(cached.groups())
    try:
        named = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8")).get("_name_or_path")
    except (OSError, ValueError, AttributeError, RecursionError):
        named = None
    if isinstance(named, str) and looks_like_hub_name(named):
        return named
    return folder.name or folder.resolve().name


def licence_of(folder: Path) -> Licence | None:
    """The licence that a folder states in its model card, or else by a file of its own; None where there is neither."""
    file = next((folder / name for name in _LICENCES if (folder / name).is_file()), None)
    card = front_matter(folder / "README.md")
    stated = {key: card[key] for key in ("license", "license_name", "license_link") if isinstance(card.get(key), str)}
    if "license" in stated:
        return Licence(stated, file)
    if file is None:
        return None
    text = file.read_text(encoding="utf-8", errors="replace")[:_HEAD]
    for pattern, name in _KNOWN:
        if found := pattern.search(text.lower()):
            return Licence({"license": found.expand(name)}, file)
    title = next((line.strip() for line in text.splitlines() if line.strip()), "other")
    name = re.sub(r"[^a-z0-9.]+", "-", title.lower()).strip("-")[:60]
    return Licence({"license": "other", "license_name": name, "license_link": file.name}, file)


def front_matter(card: Path) -> dict[str, Any]:
    """The data at the head of a model card, between lines of `---`; empty where there is none that can be read."""
    try:
        head = re.match(r"---\s*\n(.*?)\n---\s*(\n|$)", card.read_text(encoding="utf-8"), re.DOTALL)
        found = yaml.safe_load(head.group(1)) if head else None
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return {}
    return found if isinstance(found, dict) else {}


def _start_of_student(run: dict[str, Any]) -> dict[str, Any]:
    """Where a student's weights came from, as `hf_path` or `checkpoint`."""
    model: dict[str, Any] = run["model"]
    if (origin := (run.get("checkpoint") or {}).get("pretrained_checkpoint")) is not None:
        return {"checkpoint": origin}
    if model.get("init") == "from_teacher" and isinstance(model.get("teacher"), dict):
        teacher: dict[str, Any] = model["teacher"]
        return teacher
    return model


def _run_of(checkpoint: str | None) -> dict[str, Any] | None:
    """The `run_config.yaml` of a checkpoint, or None where it is gone or unreadable."""
    if checkpoint is None:
        return None
    try:
        run = read_document(find_checkpoint(checkpoint, "checkpoint") / RUN_CONFIG).data
    except (InputError, OSError):
        return None
    return run if isinstance(run.get("model"), dict) else None
