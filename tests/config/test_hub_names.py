"""Paths that are not there: which look like names on the hub, and what to do about each."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_kd.config.hub_names import absent, looks_like_hub_name


@pytest.mark.parametrize("name", ["meta-llama/Llama-3.2-1B", "Qwen/Qwen2.5-7B-Instruct", "HuggingFaceTB/SmolLM2-135M"])
def test_an_owner_and_a_name_look_like_the_hub(name: str) -> None:
    assert looks_like_hub_name(name)


@pytest.mark.parametrize(
    "path", ["models/Llama-3.2-1B", "./meta-llama/Llama", "/a/b", "~/b", "a", "a/b/c", "chats/train.jsonl", "a b/c", ""]
)
def test_paths_of_ones_own_do_not(path: str) -> None:
    assert not looks_like_hub_name(path)


def test_a_folder_that_is_there_is_the_users_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "meta-llama").mkdir()
    assert not looks_like_hub_name("meta-llama/Llama-3.2-1B") and looks_like_hub_name("Qwen/Qwen2.5-7B")


def test_the_cure_is_a_command_to_copy() -> None:
    assert absent("my models/a") == (
        "there is no such folder",
        "download it first: `hf download NAME --local-dir 'my models/a'`",
    )
    why, cure = absent("acme/chats", "dataset", "file")
    assert why.startswith("there is no such file; it looks like a name on the Hugging Face hub")
    assert cure == "run `hf download acme/chats --repo-type dataset --local-dir data/chats` and give data/chats"
