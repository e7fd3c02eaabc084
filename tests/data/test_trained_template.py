"""The template of training data, and data made with two of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from megatron_kd.config.sections import DatasetConfig
from megatron_kd.data.chat.trained_template import differing, trained_template
from megatron_kd.data.tokens.sidecar import Sidecar


@pytest.fixture
def data(tmp_path: Path) -> dict[str, str]:
    """Prefixes of files with the templates `one` and `two`, and of files without."""
    found = {name: str(tmp_path / name) for name in ("one", "two", "none")}
    for name, prefix in found.items():
        Path(f"{prefix}.sha256.json").write_text(Sidecar({}, 1, 1, None if name == "none" else name).text())
    return found


def test_it_is_that_of_the_first_files_that_say(data: dict[str, str]) -> None:
    blend: Any = [0.5, data["none"], 0.5, data["two"]]
    assert trained_template(DatasetConfig(chat=True, train_data_path=blend)) == "two"
    assert trained_template(DatasetConfig(chat=False, train_data_path=blend)) is None
    assert trained_template(DatasetConfig(chat=True, data_path=[data["none"]])) is None
    assert trained_template(DatasetConfig(chat=True, text_path="chats.jsonl")) is None


def test_two_templates_differ_and_files_that_do_not_say_agree_with_all(data: dict[str, str]) -> None:
    assert differing(DatasetConfig(chat=True, data_path=[data["one"], data["two"]])) == (data["one"], data["two"])
    assert differing(DatasetConfig(chat=True, data_path=[data["one"], data["none"]])) is None
