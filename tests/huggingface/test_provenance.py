"""Bases and licences: by the folders and files that people have."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from megatron_kd.huggingface.card import portable
from megatron_kd.huggingface.provenance import front_matter, hub_name, licence_of, student_base


def test_the_hubs_cache_and_config_json_tell_a_models_name(tmp_path: Path) -> None:
    cached = tmp_path / "models--meta-llama--Llama-3.2-1B" / "snapshots" / "abc"
    assert hub_name(cached) == "meta-llama/Llama-3.2-1B"
    assert hub_name(tmp_path / "models" / "Llama-3.2-1B") == "Llama-3.2-1B"
    for written, name in (("acme/Base", "acme/Base"), ("/home/me/base", "b"), (None, "b")):
        (tmp_path / "b").mkdir(exist_ok=True)
        (tmp_path / "b" / "config.json").write_text(json.dumps({"_name_or_path": written}))
        assert hub_name(tmp_path / "b") == name


@pytest.mark.parametrize(
    ("text", "licence"),
    [
        ("   Apache License\n   Version 2.0, January 2004", "apache-2.0"),
        ("MIT License\n\nCopyright (c) 2024", "mit"),
        ("LLAMA 3.2 COMMUNITY LICENSE AGREEMENT\n", "llama3.2"),
        ("Our own terms\n", "other"),
    ],
)
def test_a_licence_file_is_recognised_by_its_head(text: str, licence: str, tmp_path: Path) -> None:
    (tmp_path / "LICENSE").write_text(text)
    found = licence_of(tmp_path)
    assert found is not None and found.front["license"] == licence and found.file == tmp_path / "LICENSE"
    (tmp_path / "README.md").write_text("---\nlicense: gemma\n---\n")
    stated = licence_of(tmp_path)
    assert stated is not None and stated.front == {"license": "gemma"}


def test_a_folder_without_either_states_none(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("---\n: [\n---\n")
    assert front_matter(tmp_path / "README.md") == {} and licence_of(tmp_path) is None


def test_random_weights_have_no_base_and_copied_layers_have_the_teachers() -> None:
    teacher = {"hf_path": "models/Big"}
    assert student_base({"model": {"init": "random", "teacher": teacher}}) is None
    base = student_base({"model": {"init": "from_teacher", "teacher": teacher}})
    assert base is not None and base.name == "Big"
    assert student_base({"model": {}, "checkpoint": {"pretrained_checkpoint": "/gone"}}) is None


def test_only_names_are_left_of_absolute_paths() -> None:
    given = {"a": ["/x/y.bin", 0.5], "b": "~/z", "c": "runs/d", "e": "C:\\f\\g", "h": "file:///i/j"}
    assert portable(given) == {"a": ["y.bin", 0.5], "b": "z", "c": "runs/d", "e": "g", "h": "j"}
