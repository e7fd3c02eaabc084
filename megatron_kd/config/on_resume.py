"""The effect of a change on a run that is resumed, declared beside each field: `lr: Applies[float] = 3e-4`.

- *Free*: how a run is done and where its output goes; the steps stay the same, up to rounding. Nothing is reported.
- *Applies*: how the run trains from here on. The change counts from the next step, and a line says so.
- *Fixed*: what the run is. With another value it is another run, and is refused.

docs/changing-a-run.md says what that means for each field. A frozen teacher is not trained, so what `Applies` to a
student does nothing to a teacher; but its random weights are drawn again at every start.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum, auto
from functools import cache
from typing import Annotated, TypeVar, get_args, get_origin, get_type_hints

from megatron_kd.config.values import FieldPath, dotted

Value = TypeVar("Value")


class OnResume(Enum):
    """The effect of a change of a field on a run that is resumed."""

    FREE = auto()
    APPLIES = auto()
    FIXED = auto()


Free = Annotated[Value, OnResume.FREE]
Applies = Annotated[Value, OnResume.APPLIES]
Fixed = Annotated[Value, OnResume.FIXED]

_OF_A_TEACHER = {
    "attention_dropout": OnResume.FREE,
    "hidden_dropout": OnResume.FREE,
    "init_method_std": OnResume.FIXED,
}


def on_resume(path: FieldPath, sections: Mapping[FieldPath, type]) -> OnResume:
    """The effect of a change of the field at `path`.

    Args:
        path: of a field that holds a value.
        sections: the class of each section by path, as in `schema.Schema`.

    Raises:
        TypeError: the field does not declare it.
    """
    *section, name = path
    if section == ["model", "teacher"] and name in _OF_A_TEACHER:
        return _OF_A_TEACHER[name]
    found = _declared(sections[tuple(section)]).get(name)
    if found is None:
        raise TypeError(f"{dotted(path)} must say what a resume does with a change: Free[...], Applies[...] or Fixed")
    return found


@cache
def _declared(section: type) -> dict[str, OnResume]:
    hints = get_type_hints(section, include_extras=True)
    declared = {name: [mark for mark in get_args(hint)[1:] if isinstance(mark, OnResume)]
                for name, hint in hints.items() if get_origin(hint) is Annotated}  # fmt: skip
    return {name: marks[0] for name, marks in declared.items() if marks}
