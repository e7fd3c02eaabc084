"""A configuration whose models come from Hugging Face folders, with what the folders say filled in.

`model.hf_path` and `model.teacher.hf_path` bring architecture, weights and, where none is named, the tokenizer. A
field of the architecture that is set in the same place as the folder, or later, must agree with `config.json`. A
recipe's own architecture and weights give way to a folder that a file or the command line names.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from megatron_kd.config.blend import BLENDS
from megatron_kd.config.container import ConfigContainer
from megatron_kd.config.gpt_model import GPTModelProvider, meaning
from megatron_kd.config.problem import Problem, Setting
from megatron_kd.config.values import show
from megatron_kd.errors import ConfigError
from megatron_kd.huggingface.architecture import OF_TRAINING, FolderArchitecture, read_architecture
from megatron_kd.huggingface.other_folders import CONFIG_FILE

_DEFAULTS = {item.name: item.default for item in fields(GPTModelProvider)}
_WEIGHTS = ("init", "checkpoint")
_TOKENIZER_FILE = "tokenizer.json"


@dataclass(frozen=True)
class Filled:
    """A part of a configuration with what folders say filled in.

    Attributes:
        value: the part; as it was given where a folder is unusable.
        origins: for each field that was filled in or gave way, by dotted name, the file or field that decided it.
        problems: of folders that cannot be read and fields that contradict them.
        notes: what was decided otherwise than the recipe has it, a line each.
    """

    value: Any
    origins: dict[str, str]
    problems: list[Problem]
    notes: tuple[str, ...] = ()


def with_huggingface(cfg: ConfigContainer) -> ConfigContainer:
    """A configuration made in Python with what the folders of `hf_path` say filled in; without any, `cfg` itself.

    Raises:
        ConfigError: folders that cannot be used, or fields that contradict them.
    """
    filled = fill_from_folders(cfg)
    if filled.problems:
        raise ConfigError(filled.problems)
    result: ConfigContainer = filled.value
    return result


def fill_from_folders(cfg: ConfigContainer, edited: Collection[str] = ()) -> Filled:
    """Fill in what the folders of `hf_path` say; without any, the value is `cfg` itself.

    Args:
        cfg: right types throughout.
        edited: dotted names of the fields that files or the command line have set; the others are the recipe's.
    """
    model: Any = cfg.model
    origins: dict[str, str] = {}
    problems: list[Problem] = []
    if (given := cfg.models.teacher) is not None and given.hf_path is not None:
        teacher = _fill_model(given, "model.teacher", edited)
        model, origins, problems = replace(model, teacher=teacher.value), teacher.origins, teacher.problems
    if model.hf_path is not None:
        student = _fill_model(model, "model", edited)
        model, origins, problems = student.value, origins | student.origins, [*student.problems, *problems]
    if model is cfg.model:
        return Filled(cfg, {}, problems)
    checkpoint, tokenizer = _checkpoint(cfg, edited), _tokenizer(cfg, edited)
    cfg = replace(cfg, model=model, checkpoint=checkpoint.value, tokenizer=tokenizer.value)
    problems = [*problems, *tokenizer.problems]
    return Filled(cfg, origins | checkpoint.origins | tokenizer.origins, problems, tokenizer.notes)


def _fill_model(model: Any, name: str, edited: Collection[str]) -> Filled:
    """A provider with its folder's architecture."""
    later = f"{name}.hf_path" in edited  # than the recipe, whose own weights and sizes give way
    origins: dict[str, str] = {}
    if later:
        gives_way = [f for f in _WEIGHTS if f"{name}.{f}" not in edited and getattr(model, f) is not None]
        model = replace(model, **dict.fromkeys(gives_way))
        origins = {f"{name}.{f}": f"{name}.hf_path" for f in gives_way}
    try:
        found = read_architecture(model.hf_path)
    except ConfigError as error:
        folder = (Setting(f"{name}.hf_path", show(model.hf_path)),)
        return Filled(model, origins, [Problem(folder, line) for line in error.lines])
    given = {
        field
        for field in found.fields
        if f"{name}.{field}" in edited or (not later and getattr(model, field) != _DEFAULTS[field])
    }
    filled = replace(model, **found.fields)
    wrong = [
        _contradiction(model, found, name, field)
        for field in found.fields
        if field in given - set(OF_TRAINING) and meaning(model, field) != meaning(filled, field)
    ]
    origins |= {f"{name}.{f}": str(Path(model.hf_path) / CONFIG_FILE) for f in found.fields if f not in given}
    # A size that the file leaves out may be written out here; both mean the same.
    own = {f: getattr(model, f) for f in given if found.fields[f] is None or f in OF_TRAINING}
    filled = replace(filled, **own)
    return Filled(filled, origins, wrong)


def _contradiction(model: GPTModelProvider, found: FolderArchitecture, name: str, field: str) -> Problem:
    both = Problem.of(model, f"{field} hf_path", "", at=f"{name}.").fields
    means = f"the folder's {CONFIG_FILE} means {field}={show(found.fields[field])} ({found.keys[field]})"
    return Problem(both, means, f"leave {name}.{field} out")


def _checkpoint(cfg: ConfigContainer, edited: Collection[str]) -> Filled:
    """The recipe's weights of the student give way to a folder that a file or the command line names."""
    field = "checkpoint.pretrained_checkpoint"
    if "model.hf_path" not in edited or field in edited or cfg.checkpoint.pretrained_checkpoint is None:
        return Filled(cfg.checkpoint, {}, [])
    return Filled(replace(cfg.checkpoint, pretrained_checkpoint=None), {field: "model.hf_path"}, [])


def _tokenizer(cfg: ConfigContainer, edited: Collection[str]) -> Filled:
    """The tokenizer of the student's folder, else of the teacher's, where none is named; and the teacher's own.

    A recipe's tokenizer gives way, as its sizes do, to that of a student's folder that comes from the command line.
    """
    given, field = cfg.tokenizer, "tokenizer.tokenizer_model"
    if given.tokenizer_type != "huggingface" or cfg.dataset.mock:
        return Filled(given, {}, [])
    folder, replaced = cfg.model.hf_path, given.tokenizer_model
    gives_way = replaced not in (None, folder) and "model.hf_path" in edited and field not in edited
    if not gives_way or folder is None or not _has_tokenizer(folder):
        return _named_tokenizer(cfg)
    found = _named_tokenizer(replace(cfg, tokenizer=replace(given, tokenizer_model=None)))
    note = f"{field}={folder}: the tokenizer of model.hf_path, in place of the recipe's, {replaced}"
    return replace(found, problems=list(_data_of(cfg, edited, str(replaced))), notes=(note,))


def _data_of(cfg: ConfigContainer, edited: Collection[str], tokenizer: str) -> Iterator[Problem]:
    """A recipe's tokenised data goes with its tokenizer: to another, its ids are other tokens."""
    for name in BLENDS:
        field = f"dataset.{name}"
        if getattr(cfg.dataset, name) is not None and field not in edited:
            why = f"is the recipe's data, made with its tokenizer {tokenizer}, which gives way to that of model.hf_path"
            cure = f"name data of that tokenizer, or set tokenizer.tokenizer_model={tokenizer} to keep the recipe's"
            yield Problem.of(cfg, field, why, cure)


def _named_tokenizer(cfg: ConfigContainer) -> Filled:
    given = cfg.tokenizer
    teacher = None if cfg.models.teacher is None else cfg.models.teacher.hf_path
    folders = [folder for folder in (cfg.model.hf_path, teacher) if folder is not None and _has_tokenizer(folder)]
    found: dict[str, Any] = {}
    if given.tokenizer_model is None and folders:
        found["tokenizer_model"] = folders[0]
    own = given.tokenizer_model or found.get("tokenizer_model")
    if given.teacher_tokenizer_model is None and teacher is not None and teacher in folders and teacher != own:
        found["teacher_tokenizer_model"] = teacher
    origins = {f"tokenizer.{field}": str(Path(folder) / _TOKENIZER_FILE) for field, folder in found.items()}
    return Filled(replace(given, **found), origins, [])


def _has_tokenizer(folder: str) -> bool:
    return (Path(folder) / _TOKENIZER_FILE).is_file()
