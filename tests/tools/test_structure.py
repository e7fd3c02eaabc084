"""The figures of `tools/structure.py`, and what they must be for this package."""

from __future__ import annotations

from pathlib import Path

from tests.recipes.launch import ROOT
from tools.structure import circles, measure, repeated_stems, room_imports


def _package(checkout: Path, modules: dict[str, str]) -> dict[str, Path]:
    """Write modules, given as `room/name`, and return their files by dotted name."""
    found = {}
    for name, text in modules.items():
        path = checkout / "megatron_kd" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        found["megatron_kd." + name.replace("/", ".")] = path
    return found


def test_rooms_that_import_each_other_are_found(tmp_path: Path) -> None:
    modules = _package(
        tmp_path,
        {
            "low/one": "import os",
            "middle/two": "from megatron_kd.low.one import x\nfrom megatron_kd.high.three import y",
            "high/three": "from megatron_kd.middle import two",
            "high/four": "from megatron_kd.high.three import z",
        },
    )
    imports = room_imports(modules)
    assert imports == {"middle": {"low", "high"}, "high": {"middle"}}
    assert circles(imports) == ["high", "middle"]


def test_an_import_in_a_function_closes_no_circle_at_import_time(tmp_path: Path) -> None:
    lazy = "def f():\n    import megatron_kd.one.a"
    modules = _package(tmp_path, {"one/a": "from megatron_kd.two.b import x", "two/b": lazy})
    assert circles(room_imports(modules)) == []


def test_stems_are_counted_over_all_rooms(tmp_path: Path) -> None:
    names = ("one/same", "two/same", "two/other", "one/__init__", "two/__init__")
    assert repeated_stems(_package(tmp_path, dict.fromkeys(names, "")).values()) == ["same"]


def test_this_package_has_no_circle_and_few_shared_names() -> None:
    figures = measure(ROOT)
    assert figures["rooms in circles"] == "0"
    assert int(figures["stems that name several modules"].partition(":")[0]) < 4
