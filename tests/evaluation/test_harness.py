"""EleutherAI's harness on tasks made on the spot, against the same numbers computed from transformers' logits."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from megatron_kd.evaluation import harness
from megatron_kd.evaluation.saved_model import saved_model
from tests.evaluation.harness_tasks import DOCUMENTS, without_network_or_home, write_tasks
from tests.evaluation.trained import Trained


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tasks(tmp_path_factory.mktemp("tasks"))


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    without_network_or_home(monkeypatch, tmp_path_factory.getbasetemp() / "datasets")


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


@pytest.mark.slow
def test_the_numbers_are_those_of_the_logits_exported_or_not(trained: Trained, exported: Path, tasks: Path) -> None:
    accuracy, bits = expected(exported, tasks)
    assert 0 < accuracy < 1
    for place in (trained.student("tp2"), exported):
        model = saved_model(place, "--model")
        results = harness.evaluate_tasks(model, ["choose", "read"], include_path=str(tasks), batch_size=3)["results"]
        assert results["choose"]["acc,none"] == pytest.approx(accuracy)
        assert results["read"]["bits_per_byte,none"] == pytest.approx(bits, rel=1e-5)
        assert results["read"]["byte_perplexity,none"] == pytest.approx(2**bits, rel=1e-5)
