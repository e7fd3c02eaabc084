"""Whether a value has its field's type, and what cures one that has not."""

from __future__ import annotations

import difflib
import re
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import ConfigDict, TypeAdapter, ValidationError

from megatron_kd.config.paths import as_meant, is_path, why_no_path
from megatron_kd.config.problem import Problem, Setting
from megatron_kd.config.values import FieldPath, dotted, show

# How people write the precisions, and how the fields spell them.
_DTYPE_SPELLINGS: dict[str, dict[str, str]] = {
    "teacher_dtype": {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"},
    "precision": {"float32": "fp32", "bfloat16": "bf16"},
}

_SHARES: FieldPath = ("dataset", "split")  # text, but a single share looks like a number


@cache
def _adapter(annotation: Any) -> TypeAdapter[Any]:
    return TypeAdapter(annotation, config=ConfigDict(strict=True, allow_inf_nan=False))


def check_value(path: FieldPath, annotation: Any, value: Any) -> tuple[Any, Problem | None]:
    """Check one value against its field's type.

    Returns:
        the value (a whole number given for a float becomes a float, `~` the home folder) and None, or the value and
        what is wrong.
    """
    value = as_meant(value) if is_path(path) else _spelled_out(path, value)
    try:
        checked = _adapter(annotation).validate_python(value)
    except ValidationError:
        return value, _problem(path, value, f"must be {describe(annotation)}", _cure(path, annotation, value))
    wrong = why_no_path(checked) if is_path(path) else None
    return checked, None if wrong is None else _problem(path, checked, *wrong)


def check_written(path: FieldPath, annotation: Any, value: Any) -> tuple[Any, Problem | None]:
    """`check_value` of a value from a file or a command line, where `${...}` is not filled in as elsewhere."""
    if "${" in str(value):
        return value, _problem(path, value, "${...} is not filled in here", "write the value itself")
    return check_value(path, annotation, value)


def _problem(path: FieldPath, value: Any, why: str, cure: str) -> Problem:
    return Problem((Setting(dotted(path), show(value)),), why, cure)


def _spelled_out(path: FieldPath, value: Any) -> Any:
    if path == _SHARES and isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
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


def _cure(path: FieldPath, annotation: Any, value: Any) -> str:
    members = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    choices = [str(arg) for member in members if get_origin(member) is Literal for arg in get_args(member)]
    by_lower = {choice.lower(): choice for choice in choices}
    near = difflib.get_close_matches(value.lower(), by_lower, n=1) if isinstance(value, str) else []
    if near:
        return f"did you mean {by_lower[near[0]]}?"
    if isinstance(value, str) and _fits_unquoted(members, value):
        return "leave out the quotes"
    if isinstance(value, float) and int in members and value.is_integer():
        return f"write {int(value)}"
    if isinstance(value, int | float) and str in members:
        # A shell takes quotes away, a file keeps them.
        return f"put it in quotes, on a command line '{dotted(path)}=\"{value}\"'"
    if isinstance(value, tuple) or (isinstance(value, str) and any(get_origin(m) is list for m in members)):
        return "write a list: [...]"
    return ""


def _fits_unquoted(members: tuple[Any, ...], value: str) -> bool:
    if bool in members and value.lower() in ("true", "false"):
        return True
    pattern = r"[-+]?\d+" if int in members else r"[-+]?[\d.]+(e[-+]?\d+)?"
    return bool({int, float} & set(members)) and re.fullmatch(pattern, value.lower()) is not None
