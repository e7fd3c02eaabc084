"""What a configuration may hold: every field by its dotted path, with its type and its class default.

A configuration is handled here as flat data, `{("train", "train_iters"): 1000, ...}`: that is what files and
command lines edit, and what is checked before a new `ConfigContainer` is built from it.
"""

from __future__ import annotations

import copy
import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError

from megatron_kd.config.container import ConfigContainer
from megatron_kd.config.gpt_distillation import GPTDistillationProvider
from megatron_kd.config.gpt_model import GPTModelProvider

Path = tuple[str, ...]

# How people write the precisions, and how the fields spell them.
_DTYPE_SPELLINGS: dict[str, dict[str, str]] = {
    "teacher_dtype": {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"},
    "precision": {"float32": "fp32", "bfloat16": "bf16"},
}
_NO_STATE_SPACE = re.compile(r"(mamba|hybrid|is_hybrid)(_|$)")
_PLAIN_WORD = re.compile(r"[^\s'\"\[\]{}]+")


@dataclass(frozen=True)
class Schema:
    """The fields of one configuration.

    Attributes:
        sections: the class of every section by path; the empty path is the container's.
        leaves: the type annotation of every field that holds a value.
        defaults: the class default of every such field.
    """

    sections: Mapping[Path, type]
    leaves: Mapping[Path, Any]
    defaults: Mapping[Path, Any]


def dotted(path: Path) -> str:
    """`("model", "num_layers")` as users write it: `model.num_layers`."""
    return ".".join(path)


def show(value: Any) -> str:
    """A value as one would write it in YAML, on one line and not too long."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, str):
        # A text that looks like something else is quoted, so that the message shows what it is.
        is_other = re.match(r"[-+.\d]|(null|true|false)$", value) or not value.isprintable()
        is_word = _PLAIN_WORD.fullmatch(value) and not is_other
        text = value if is_word else repr(value)
    elif isinstance(value, list):
        text = f"[{', '.join(show(v) for v in value)}]"
    else:
        text = repr(value)
    return text if len(text) <= 120 else text[:117] + "..."


def schema_of(config: ConfigContainer) -> Schema:
    """The fields `config` has; the class of `model` and `model.teacher` is the one its author chose."""
    sections: dict[Path, type] = {}
    leaves: dict[Path, Any] = {}
    defaults: dict[Path, Any] = {}

    def visit(instance: Any, path: Path) -> None:
        sections[path] = type(instance)
        default, hints = type(instance)(), get_type_hints(type(instance))
        for name in (item.name for item in fields(instance)):
            here, classes = (*path, name), section_classes(hints[name])
            if not classes:
                leaves[here], defaults[here] = hints[name], getattr(default, name)
            elif isinstance(getattr(instance, name), classes):
                visit(getattr(instance, name), here)
            else:  # not a section at all: `wrong_sections` says so
                visit(getattr(default, name), here)

    visit(config, ())
    return Schema(sections, leaves, defaults)


def section_classes(annotation: Any) -> tuple[type, ...]:
    """The dataclasses a field's annotation allows; empty for a field that holds a plain value."""
    members = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    return tuple(members) if all(isinstance(cls, type) and is_dataclass(cls) for cls in members) else ()


def wrong_sections(config: Any, path: Path = ()) -> list[Path]:
    """Paths of the sections that hold something which is not a section of the right class."""
    found, hints = [], get_type_hints(type(config))
    for name in (item.name for item in fields(config)):
        classes, value, here = section_classes(hints[name]), getattr(config, name), (*path, name)
        if classes:
            found += wrong_sections(value, here) if isinstance(value, classes) else [here]
    return found


def flatten(config: ConfigContainer, schema: Schema) -> dict[Path, Any]:
    """Copy every value of `config` out, by path; what is not there has its class default."""
    flat = {}
    for path, default in schema.defaults.items():
        value: Any = config
        for name in path:
            value = getattr(value, name, default)
        flat[path] = copy.deepcopy(value)
    return flat


def build(flat: Mapping[Path, Any], schema: Schema) -> ConfigContainer:
    """Make new dataclass instances from flat values."""

    def make(path: Path) -> Any:
        cls = schema.sections[path]
        values = {}
        for item in fields(cls):
            here = (*path, item.name)
            values[item.name] = make(here) if here in schema.sections else flat[here]
        return cls(**values)

    return make(())


@cache
def _adapter(annotation: Any) -> TypeAdapter[Any]:
    return TypeAdapter(annotation, config=ConfigDict(strict=True, allow_inf_nan=False))


def check_value(path: Path, annotation: Any, value: Any) -> tuple[Any, str | None]:
    """Check one value against its field's type.

    Returns:
        the value (a whole number given for a float becomes a float) and None, or the value and what is wrong.
    """
    value = _spelled_out(path, value)
    try:
        return _adapter(annotation).validate_python(value), None
    except ValidationError:
        return value, f"{dotted(path)}={show(value)}: must be {describe(annotation)}{_cure(annotation, value)}"


def _spelled_out(path: Path, value: Any) -> Any:
    spellings = _DTYPE_SPELLINGS.get(path[-1])
    if spellings is None or not isinstance(value, str):
        return value
    name = value.removeprefix("torch.")
    return spellings.get(name, name)


def describe(annotation: Any) -> str:
    """A type annotation in words."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return f"one of {', '.join(map(str, args))}"
    if origin is list:
        return f"a list whose items are {describe(args[0])}"
    if origin in (Union, UnionType):
        return " or ".join(describe(arg) for arg in args)
    words = {bool: "true or false", int: "a whole number", float: "a finite number", str: "text", NoneType: "null"}
    return words[annotation]


def _cure(annotation: Any, value: Any) -> str:
    members = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    choices = [str(arg) for member in members if get_origin(member) is Literal for arg in get_args(member)]
    by_lower = {choice.lower(): choice for choice in choices}
    near = difflib.get_close_matches(value.lower(), by_lower, n=1) if isinstance(value, str) else []
    if near:
        return f"; did you mean {by_lower[near[0]]}?"
    if isinstance(value, str) and _fits_unquoted(members, value):
        return "; leave out the quotes"
    if isinstance(value, float) and int in members and value.is_integer():
        return f"; write {int(value)}"
    if isinstance(value, int | float) and str in members:
        return "; put it in quotes"
    if isinstance(value, tuple) or (isinstance(value, str) and any(get_origin(m) is list for m in members)):
        return "; write a list: [...]"
    return ""


def _fits_unquoted(members: tuple[Any, ...], value: str) -> bool:
    if bool in members and value.lower() in ("true", "false"):
        return True
    pattern = r"[-+]?\d+" if int in members else r"[-+]?[\d.]+(e[-+]?\d+)?"
    return bool({int, float} & set(members)) and re.fullmatch(pattern, value.lower()) is not None


_OF_DISTILLATION = {f.name for f in fields(GPTDistillationProvider)} - {f.name for f in fields(GPTModelProvider)}


def unknown_key(path: Path, schema: Schema) -> str:
    """What to say about a key that is no field: the nearest right one, or why there is none."""
    name = dotted(path)
    if any(_NO_STATE_SPACE.match(part) for part in path):
        return (
            f"{name}: Mamba and hybrid models are not supported: only GPT models are built here, since the layer "
            "specs have no state-space layer; leave this key out and use a GPT model"
        )
    if path[:1] == ("model",) and path[1:2] and path[1] in _OF_DISTILLATION:
        inside_model = any(known[:2] == path[:2] for known in schema.sections)
        if not inside_model:
            return (
                f"{name}: this recipe's model has no teacher (it is a {schema.sections[('model',)].__name__}); "
                "use a distillation recipe, whose model is a GPTDistillationProvider"
            )
    parent = next((path[:n] for n in range(len(path) - 1, 0, -1) if path[:n] in schema.leaves), None)
    if parent:
        return f"{name}: {dotted(parent)} is a value without fields of its own; set it as a whole"
    near = nearest_key(path, schema)
    return f"{name}: unknown key; " + (f"did you mean {near}?" if near else _siblings(path, schema))


def nearest_key(path: Path, schema: Schema) -> str | None:
    """The known key most like `path`: one slip away, the same name in another section, a similar name, or None."""
    known = {dotted(key): key for key in (*schema.leaves, *schema.sections) if key}
    name = dotted(path)
    if slip := difflib.get_close_matches(name, map(dotted, schema.leaves), n=1, cutoff=0.9):
        return slip[0]
    same_leaf = [other for other, key in known.items() if key[-1] == path[-1]]
    if same_leaf:
        return max(same_leaf, key=lambda other: difflib.SequenceMatcher(None, name, other).ratio())
    siblings = {key[-1]: other for other, key in known.items() if key[:-1] == path[:-1]}
    near = difflib.get_close_matches(path[-1], siblings, n=1)
    if near:
        return siblings[near[0]]
    leaves = {key[-1]: other for other, key in reversed(known.items())}  # the first of a name wins
    near = difflib.get_close_matches(path[-1], leaves, n=1, cutoff=0.75)
    if near:
        return leaves[near[0]]
    elsewhere = [other for other, key in known.items() if path[: len(key)] != key]
    near = difflib.get_close_matches(name, elsewhere, n=1, cutoff=0.7)
    return near[0] if near else None


def _siblings(path: Path, schema: Schema) -> str:
    parent = next(path[:n] for n in range(len(path) - 1, -1, -1) if path[:n] in schema.sections)
    names = ", ".join(item.name for item in fields(schema.sections[parent]))
    return f"the {'fields of ' + dotted(parent) if parent else 'sections'} are {names}"
