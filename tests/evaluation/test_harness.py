"""`megatron-kd lm-eval` on tasks made on the spot, against the same numbers computed from transformers' logits."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from megatron_kd.commands import cli
from megatron_kd.evaluation import harness
from megatron_kd.evaluation.saved_model import saved_model
from tests.evaluation.trained import THINGS, Trained

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


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a task of multiple choice and one of perplexity; the choices of some questions are wrong."""
    folder = tmp_path_factory.mktemp("tasks")
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


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is left in the home folder, nor in this process's environment."""
    from datasets import config

    monkeypatch.setattr(config, "HF_DATASETS_CACHE", tmp_path_factory.getbasetemp() / "datasets")
    for name in harness._OFFLINE:
        monkeypatch.setenv(name, "1")


def log_probability(model: Any, tokenizer: Any, prompt: str, text: str) -> float:
    """Of `text` after `prompt`, or after the end of a document, in float64."""
    import torch

    before = tokenizer(prompt).input_ids if prompt else [tokenizer.eos_token_id]
    after = tokenizer(prompt + text).input_ids[len(before) if prompt else 0 :]
    with torch.no_grad():
        logits = model(torch.tensor([before + after])).logits[0].double().log_softmax(-1)
    return sum(float(logits[len(before) + place - 1, token]) for place, token in enumerate(after))


def expected(folder: Path, tasks: Path) -> tuple[float, float]:
    """Accuracy of `choose` and bits a byte of `read`, computed from logits."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    models = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    right = []
    for line in (tasks / "choose.jsonl").read_text().splitlines():
        doc = json.loads(line)
        likely = [log_probability(*models, doc["question"], choice) for choice in doc["choices"]]
        right.append(likely.index(max(likely)) == doc["answer"])
    total = sum(log_probability(*models, "", text) for text in DOCUMENTS)
    return sum(right) / len(right), -total / math.log(2) / sum(len(text.encode()) for text in DOCUMENTS)


def test_the_numbers_are_those_of_the_logits_exported_or_not(trained: Trained, exported: Path, tasks: Path) -> None:
    accuracy, bits = expected(exported, tasks)
    assert 0 < accuracy < 1
    for place in (trained.student("tp2"), exported):
        model = saved_model(place, "--model")
        results = harness.evaluate_tasks(model, ["choose", "read"], include_path=str(tasks), batch_size=3)["results"]
        assert results["choose"]["acc,none"] == pytest.approx(accuracy)
        assert results["read"]["bits_per_byte,none"] == pytest.approx(bits, rel=1e-5)
        assert results["read"]["byte_perplexity,none"] == pytest.approx(2**bits, rel=1e-5)


def test_the_command(exported: Path, tasks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--model", str(exported), "--tasks", "choose", "--include-path", str(tasks), "--limit", "3"]
    assert cli.main(["lm-eval", *words, "--output", str(tmp_path / "out.json")]) == 0
    assert "|choose|" in capsys.readouterr().out
    written = json.loads((tmp_path / "out.json").read_text())
    assert written["model"] == str(exported) and written["limit"] == 3
    assert written["n-samples"]["choose"] == {"original": 12, "effective": 3}
    assert 0 <= written["results"]["choose"]["acc,none"] <= 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--tasks", "no_such"], "error: --tasks no_such: not among the harness's "),
        (["--tasks", "no_data"], "error: --tasks no_data: does not load: FileNotFoundError: "),
        (["--tasks", "choose,"], "error: --tasks 'choose,': names an empty task; write NAME or NAME,NAME"),
        (["--tasks", "choose", "--limit", "0"], "error: --limit 0: must be 1 or more"),
        (["--tasks", "choose", "--include-path", "nowhere"], "error: --include-path nowhere: there is no such folder"),
        (["--tasks", "choose", "--output", "no/such/file"], "error: --output no/such/file: there is no folder"),
        (["--tasks", "choose", "--model", "nowhere"], "error: --model=nowhere: no checkpoint there"),
    ],
)
def test_what_cannot_be_is_one_line(
    words: list[str], message: str, exported: Path, tasks: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [] if "--model" in words else ["--model", str(exported)]
    given += [] if "--include-path" in words else ["--include-path", str(tasks)]
    assert cli.main(["lm-eval", *given, *words]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and errors[0].startswith(message)


def test_without_the_harness(
    exported: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(harness.importlib.util, "find_spec", lambda name: None)
    assert cli.main(["lm-eval", "--model", str(exported), "--tasks", "choose"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "error: lm_eval, EleutherAI's harness, is not installed; pip install megatron_kd[eval]"
