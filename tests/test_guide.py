"""The tables of the user guide against the code they describe."""

from __future__ import annotations

import re
from dataclasses import MISSING, fields
from pathlib import Path

import yaml

from megatron_kd.config.kd_config import ModelOptDistillConfig
from megatron_kd.errors import MegatronKDError
from megatron_kd.resolve.flags import FLAGS

GUIDE = (Path(__file__).resolve().parents[1] / "docs/distillation.md").read_text(encoding="utf-8")


def rows(header: str) -> list[list[str]]:
    """The cells of the table whose first column is called `header`, without the header's own two lines."""
    table = GUIDE.partition(f"| {header} |")[2].partition("\n\n")[0]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table.splitlines()[2:]]


def test_every_distillation_setting_is_listed_with_its_default() -> None:
    listed = {row[0].strip("`"): yaml.safe_load(row[1].strip("`")) for row in rows("field of `ModelOptDistillConfig`")}
    defaults = {
        item.name: item.default if item.default_factory is MISSING else item.default_factory()
        for item in fields(ModelOptDistillConfig)
    }
    assert listed == defaults


def test_every_flag_is_listed_as_its_help_has_it() -> None:
    assert rows("flag") == [[f"`{flag.usage}`", flag.sets, flag.meaning] for flag in FLAGS]


def test_every_exit_code_is_listed() -> None:
    def codes(error: type[MegatronKDError]) -> set[int]:
        return {error.exit_code}.union(*map(codes, error.__subclasses__()))

    listed = {int(row[0]) for row in rows("code") if re.fullmatch(r"\d+", row[0])}
    assert listed == codes(MegatronKDError) | {0}
