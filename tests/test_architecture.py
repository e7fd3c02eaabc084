"""`docs/architecture.md` against the sources: its rooms and their order, and every file it names."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "megatron_kd"
PAGE = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")

_CODE = re.compile(r"`([^`\n]+)`")
_PATH = re.compile(r"[\w./]+(\.(py|toml|md)|/)")
_FIGURE = re.compile(r"(?:(?<=\s)|^)((?:[a-z_]+/)*[a-z_]+\.py|(?:[a-z_]+/)+)(?=[\s,;:]|$)", re.MULTILINE)


def rooms_of_the_page() -> list[str]:
    """The first column of the table of rooms, from high to low."""
    table = PAGE.partition("| from high to low |")[2].partition("\n\n")[0]
    cells = [line.split("|")[1] for line in table.splitlines()[2:]]
    return [name.rstrip("/").removesuffix(".py") for cell in cells for name in _CODE.findall(cell)]


def named_files() -> list[str]:
    """The paths that the page names in backticks or in its figure."""
    figure = PAGE.partition("```\n")[2].partition("```")[0]
    words = [word for word in _CODE.findall(PAGE.replace(figure, "")) if _PATH.fullmatch(word)]
    return sorted({*words, *_FIGURE.findall(figure)})


def exists(name: str) -> bool:
    """Whether a path, or its tail as a figure shows it, is in the package or beside it."""
    return (PACKAGE / name).exists() or (ROOT / name).exists() or any(PACKAGE.glob(f"*/{name}"))


def test_the_table_lists_the_rooms_in_the_order_of_the_contract() -> None:
    contract = (ROOT / "pyproject.toml").read_text(encoding="utf-8").partition('"A room imports only lower rooms"')[2]
    floors = ast.literal_eval(contract.partition("layers = ")[2].partition("]")[0] + "]")
    assert rooms_of_the_page() == [room for floor in floors for room in floor.split(" | ")]


def test_the_page_names_files() -> None:
    assert {"config/container.py", "training/step.py", "tests/training/test_frames.py"} <= set(named_files())


@pytest.mark.parametrize("name", named_files())
def test_a_named_file_exists(name: str) -> None:
    assert exists(name)


def test_a_file_that_moved_is_noticed() -> None:
    assert not exists("training/prepare.py")
