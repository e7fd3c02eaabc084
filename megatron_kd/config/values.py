"""Single values: how they are written, what type they must have, and what cures one of the wrong type."""

from __future__ import annotations

import difflib
import re
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import ConfigDict, TypeAdapter, ValidationError

FieldPath = tuple[str, ...]  # the keys that lead to a field: `("model", "num_layers")`

# How people write the precisions, and how the fields spell them.
_DTYPE_SPELLINGS: dict[str, dict[str, str]] = {
    "teacher_dtype": {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"},
    "precision": {"float32": "fp32", "bfloat16": "bf16"},
}
_PLAIN_WORD = re.compile(r"[^\s'\"\[\]{}]+")


def dotted(path: FieldPath) -> str:
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


@cache
def _adapter(annotation: Any) -> TypeAdapter[Any]:
    return TypeAdapter(annotation, config=ConfigDict(strict=True, allow_inf_nan=False))


def check_value(path: FieldPath, annotation: Any, value: Any) -> tuple[Any, str | None]:
    """Check one value against its field's type.

    Returns:
        the value (a whole number given for a float becomes a float) and None, or the value and what is wrong.
    """
    value = _spelled_out(path, value)
    try:
        return _adapter(annotation).validate_python(value), None
    except ValidationError:
        return value, f"{dotted(path)}={show(value)}: must be {describe(annotation)}{_cure(annotation, value)}"


def check_written(path: FieldPath, annotation: Any, value: Any) -> tuple[Any, str | None]:
    """`check_value` of a value from a file or a command line, where `${...}` is not filled in as elsewhere."""
    if "${" in str(value):
        return value, f"{dotted(path)}={show(value)}: ${{...}} is not filled in here; write the value itself"
    return check_value(path, annotation, value)


def _spelled_out(path: FieldPath, value: Any) -> Any:
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
