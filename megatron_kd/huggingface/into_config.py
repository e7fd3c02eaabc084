"""A configuration whose models come from Hugging Face folders, with what the folders say filled in.

`model.hf_path` and `model.teacher.hf_path` bring architecture, weights and, where none is named, the tokenizer. A
field of the architecture that is set in the same place as the folder, or later, must agree with `config.json`. A
recipe's own architecture and weights give way to a folder that a file or the command line names.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from megatron_kd.config.container import ConfigContainer
from megatron_kd.config.gpt_model import GPTModelProvider, explicit
from megatron_kd.config.values import FieldPath, show
from megatron_kd.errors import ConfigError
from megatron_kd.huggingface.architecture import CONFIG_FILE, FolderArchitecture, read_architecture

_DEFAULTS = {item.name: item.default for item in fields(GPTModelProvider)}
_WEIGHTS = ("init", "checkpoint")


def with_huggingface(
    cfg: ConfigContainer, edited: Iterable[FieldPath] = ()
) -> tuple[ConfigContainer, list[tuple[FieldPath, str]]]:
    """Fill in what the folders of `hf_path` say; without any, `cfg` itself.

    Args:
        cfg: right types throughout.
        edited: the fields that files or the command line have set; the others are the recipe's.

    Returns:
        the configuration, and for each problem its field and a line. A model whose folder is unusable stays as it is.
    """
    edited = set(edited)
    problems: list[tuple[FieldPath, str]] = []
    model: Any = cfg.model
    if (given := cfg.models.teacher) is not None and given.hf_path is not None:
        teacher, wrong = _filled(given, ("model", "teacher"), edited)
        model, problems = replace(model, teacher=teacher), [*problems, *wrong]
    if model.hf_path is not None:
        model, wrong = _filled(model, ("model",), edited)
        problems = [*wrong, *problems]
    if model is not cfg.model:
        cfg = replace(cfg, model=model, checkpoint=_checkpoint(cfg, edited), tokenizer=_tokenizer(cfg))
    return cfg, problems


def resolved(cfg: ConfigContainer) -> ConfigContainer:
    """`with_huggingface` of a configuration made in Python.

    Raises:
        ConfigError: folders that cannot be used, or fields that contradict them.
    """
    cfg, problems = with_huggingface(cfg)
    if problems:
        raise ConfigError([line for _, line in problems])
    return cfg


def _filled(model: Any, path: FieldPath, edited: set[FieldPath]) -> tuple[Any, list[tuple[FieldPath, str]]]:
    """A provider with its folder's architecture, or as it is with what is wrong."""
    where, name = (*path, "hf_path"), ".".join(path)
    later = where in edited  # than the recipe, whose own weights and sizes give way
    if later:
        model = replace(model, **{field: None for field in _WEIGHTS if (*path, field) not in edited})
    try:
        found = read_architecture(model.hf_path)
    except ConfigError as error:
        return model, [(where, f"{name}.hf_path={show(model.hf_path)}: {problem}") for problem in error.problems]
    given = {
        field
        for field in found.fields
        if (*path, field) in edited or (not later and getattr(model, field) != _DEFAULTS[field])
    }
    filled = replace(model, **found.fields)
    wrong = [
        ((*path, field), _contradiction(model, found, name, field))
        for field in found.fields
        if field in given and _meaning(model, field) != _meaning(filled, field)
    ]
    # A size that the file leaves out may be written out here; both mean the same.
    return replace(filled, **{f: getattr(model, f) for f in given if found.fields[f] is None}), wrong


def _meaning(model: GPTModelProvider, field: str) -> Any:
    """A field's value, with None replaced by what it stands for."""
    if field == "rope_scaling_factor" and not model.rope_scaling:
        return None  # has no effect
    return getattr(explicit(model), field)


def _contradiction(model: GPTModelProvider, found: FolderArchitecture, name: str, field: str) -> str:
    both = f"{name}.{field}={show(getattr(model, field))}, {name}.hf_path={show(model.hf_path)}"
    means = f"{field}={show(found.fields[field])} ({found.keys[field]})"
    return f"{both}: the folder's {CONFIG_FILE} means {means}; leave {name}.{field} out"


def _checkpoint(cfg: ConfigContainer, edited: set[FieldPath]) -> Any:
    """The recipe's weights of the student give way to a folder that a file or the command line names."""
    gives_way = ("model", "hf_path") in edited and ("checkpoint", "pretrained_checkpoint") not in edited
    return replace(cfg.checkpoint, pretrained_checkpoint=None) if gives_way else cfg.checkpoint


def _tokenizer(cfg: ConfigContainer) -> Any:
    """The tokenizer of the student's folder, else of the teacher's, where none is named; and the teacher's own."""
    given = cfg.tokenizer
    if given.tokenizer_type != "huggingface" or cfg.dataset.mock:
        return given
    teacher = None if cfg.models.teacher is None else cfg.models.teacher.hf_path
    folders = [folder for folder in (cfg.model.hf_path, teacher) if folder is not None and _has_tokenizer(folder)]
    own = given.tokenizer_model or next(iter(folders), None)
    teachers = given.teacher_tokenizer_model
    if teachers is None and teacher in folders and teacher != own:
        teachers = teacher
    return replace(given, tokenizer_model=own, teacher_tokenizer_model=teachers)


def _has_tokenizer(folder: str) -> bool:
    return (Path(folder) / "tokenizer.json").is_file()
