"""Two tasks for EleutherAI's harness, made on the spot, and one whose data is not there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from megatron_kd.evaluation.harness import OFFLINE
from tests.evaluation.trained import THINGS

CHOOSE = """\
task: choose
dataset_path: json
dataset_kwargs:
  data_files: {test: FOLDER/choose.jsonl}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: answer
target_delimiter: ""
metric_list:
  - metric: acc
"""
READ = """\
task: read
dataset_path: json
dataset_kwargs:
  data_files: {test: FOLDER/read.jsonl}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list:
  - metric: byte_perplexity
  - metric: bits_per_byte
"""
DOCUMENTS = ["Ada counts two apples.", "Dan counts nine drums.", "Zorro counts bells."]


def write_tasks(folder: Path) -> Path:
    """`choose`, of multiple choice, of which some choices are wrong; `read`, of perplexity; and `no_data`."""
    things = [f" {thing}" for thing in THINGS.values()]
    questions = [
        {"question": f"{name} counts {number}", "choices": things, "answer": (index + shift) % len(things)}
        for index, name in enumerate(THINGS)
        for number, shift in (("two", 0), ("nine", 0), ("three", 1))
    ]
    (folder / "choose.jsonl").write_text("".join(json.dumps(line) + "\n" for line in questions))
    (folder / "read.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in DOCUMENTS))
    for name, text in (("choose", CHOOSE), ("read", READ), ("no_data", CHOOSE.replace("choose", "no_data"))):
        (folder / f"{name}.yaml").write_text(text.replace("FOLDER", str(folder)))
    return folder


def without_network_or_home(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    """Leave nothing in the home folder, nor in this process's environment."""
    from datasets import config

    monkeypatch.setattr(config, "HF_DATASETS_CACHE", cache)
    for name in OFFLINE:
        monkeypatch.setenv(name, "1")
