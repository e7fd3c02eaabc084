"""Every import path and `-m module` that a document, recipe, configuration file or job script names exists."""

from __future__ import annotations

import importlib
import importlib.util
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted(path for name in ("docs", "recipes", "conf", "launch") for path in (ROOT / name).rglob("*")),
]

_IMPORT = re.compile(r"^\s*from (megatron_kd[\w.]*) import (\([^)]*\)|[^\n]*)", re.MULTILINE)
_DOTTED = re.compile(r"(?<![\w/.-])megatron_kd(?:\.[A-Za-z_]\w*)+")
_RUN = re.compile(r"-m ((?:megatron_kd|tests|tools)\b[\w.]*)")


def imports_in(text: str) -> Iterator[str]:
    """Dotted names: of `from a import b`, as `a.b`, and of any `megatron_kd.a.b`."""
    for module, names in _IMPORT.findall(text):
        for name in re.findall(r"\w+", re.sub(r"#[^\n]*| as \w+", "", names)):
            yield f"{module}.{name}"
    yield from _DOTTED.findall(text)


def modules_run_in(text: str) -> list[str]:
    """The modules of `python -m`."""
    return _RUN.findall(text)


def all_of(find: Callable[[str], Iterable[str]]) -> list[str]:
    """Everything that `find` finds in `FILES`, each once."""
    texts = [path.read_text(encoding="utf-8") for path in FILES if path.suffix in (".md", ".py", ".yaml", ".sbatch")]
    return sorted({name for text in texts for name in find(text)})


def resolve(dotted: str) -> object:
    """The object that a dotted name leads to, through modules and then attributes."""
    name, _, attribute = dotted.rpartition(".")
    if not name:
        return importlib.import_module(dotted)
    parent = resolve(name)
    if hasattr(parent, attribute):
        return getattr(parent, attribute)
    return importlib.import_module(dotted)


@pytest.mark.parametrize("dotted", all_of(imports_in))
def test_the_import_path_exists(dotted: str) -> None:
    resolve(dotted)


@pytest.mark.parametrize("module", all_of(modules_run_in))
def test_the_module_can_be_run(module: str) -> None:
    spec = importlib.util.find_spec(module)
    assert spec, f"there is no module {module}"
    assert not spec.submodule_search_locations or importlib.util.find_spec(f"{module}.__main__")


def test_all_ways_to_write_a_path_are_found() -> None:
    text = (
        "from megatron_kd.a import (\n    b,  # why\n    c as d,\n)\n`megatron_kd.e.f(x)` python -m tools.g "
        "share/megatron_kd runs/megatron_kd.txt torchrun -m megatron_kd.h\n"
    )
    assert set(imports_in(text)) == {
        *("megatron_kd.a.b", "megatron_kd.a.c", "megatron_kd.a", "megatron_kd.e.f", "megatron_kd.h"),
    }
    assert modules_run_in(text) == ["tools.g", "megatron_kd.h"]


@pytest.mark.parametrize("dotted", ["megatron_kd.models.no_such_module", "megatron_kd.models.llama.no_such_preset"])
def test_a_path_that_does_not_exist_fails(dotted: str) -> None:
    with pytest.raises(ModuleNotFoundError):
        resolve(dotted)
