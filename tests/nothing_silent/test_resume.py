"""The cases of `resume.yaml`: real runs, resumed with something changed."""

from __future__ import annotations

import contextlib
import io
import random
import re
import shutil
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import yaml

from megatron_kd.config.sections import DatasetConfig
from tests.data.tokens import write_tokens
from tests.faults.damage import flip_bit
from tests.ranks import run_ranks
from tests.tiny import VOCAB, read_metrics, tiny_config

CASES: list[dict[str, Any]] = yaml.safe_load(Path(__file__).with_name("resume.yaml").read_text())
STEPS, CLOSE = 8, 1e-5


@dataclass
class Ended:
    """How a run ended: its code, its output, the tokens and samples that it read, its records and changed files."""

    code: int = -1
    output: str = ""
    tokens: list[list[int]] = field(default_factory=list)
    samples: list[int] = field(default_factory=list)
    records: dict[int, dict[str, Any]] = field(default_factory=dict)
    changed: list[str] = field(default_factory=list)
    validate: int = -1


def _config(folder: Path, run: str) -> Any:
    values = {"iters": STEPS, "save": True, "save_interval": 4}
    if run == "mock":
        cfg = tiny_config(folder / run, **values)
    else:
        cfg = tiny_config(folder / run, distilled=False, **values)
        cfg.dataset = DatasetConfig(data_path=[str(folder / "corpus")], split="100,0,0")
        cfg.validation.eval_iters = 0
    cfg.scheduler.lr_decay_style = "cosine"
    cfg.logger.progress = "plain"
    return cfg


def _corpus(prefix: Path, seed: int) -> None:
    """30 documents of 20 tokens: 37 samples of 16 in an epoch."""
    ids = random.Random(seed)
    write_tokens(prefix, [[ids.randrange(VOCAB) for _ in range(20)] for _ in range(30)])


# Changes of the files of a case, and the words that stand for its paths.


def moved_data(folder: Path, run_dir: Path) -> dict[str, str]:
    for ending in (".bin", ".idx"):
        shutil.copy(folder / f"corpus{ending}", run_dir.parent / f"elsewhere{ending}")
    return {"@moved": str(run_dir.parent / "elsewhere")}


def other_data(folder: Path, run_dir: Path) -> dict[str, str]:
    _corpus(run_dir.parent / "other", 2)
    return {"@other": str(run_dir.parent / "other")}


def replaced_data(folder: Path, run_dir: Path) -> dict[str, str]:
    """The run's own data is replaced; put back after the case."""
    _corpus(folder / "corpus", 3)
    return {}


def another_checkpoint(folder: Path, run_dir: Path) -> dict[str, str]:
    return {"@other": str(folder / "text/checkpoints/iter_0000008")}


def damaged_newest(folder: Path, run_dir: Path) -> dict[str, str]:
    flip_bit(next(run_dir.glob("checkpoints/iter_0000008/*.distcp")), random.Random(1))
    return {}


def _bases(folder: Path) -> dict[str, Ended]:
    """On a rank: the runs that the cases resume."""
    from megatron_kd.training.train import train

    _corpus(folder / "corpus", 1)
    ended = {}
    for run in ("mock", "text"):
        with _noting(noted := Ended()):
            train(_config(folder, run))
        noted.records = {r["step"]: r for r in read_metrics(folder / run) if r["split"] == "train"}
        ended[run] = noted
    return ended


def _resumed(folder: Path, cases: list[dict[str, Any]]) -> list[Ended]:
    """On a rank: the cases, one after another."""
    return [_resume(folder, number, case) for number, case in enumerate(cases)]


def _resume(folder: Path, number: int, case: dict[str, Any]) -> Ended:
    from megatron_kd import run as of_a_file
    from megatron_kd.commands import cli

    run_dir = Path(shutil.copytree(folder / case["run"], folder / f"case_{number}" / "run"))
    for path in (run_dir / "checkpoints").iterdir():
        if int(path.name[-7:]) > case["from"]:
            shutil.rmtree(path)
    paths = globals()[case["prepare"]](folder, run_dir) if "prepare" in case else {}
    change = [re.sub(r"@\w+", lambda name: paths[name[0]], word) for word in case["change"]]
    saved = str(run_dir / "run_config.yaml")
    words = [f"logger.run_dir={run_dir}", *change]
    before, ended = _files(run_dir), Ended()
    with _printed(ended):
        ended.validate = cli.main(["validate", _recipe(run_dir.parent, saved), "--config-file", saved, *words])
    validated = ended.output
    assert _files(run_dir) == before, "validate has changed the run"
    with _printed(ended), _noting(ended):
        try:
            ended.code = of_a_file.main([saved, *words])
        except Exception:  # a bug: its case fails, and the others continue
            traceback.print_exc()
    if ended.code == 2:
        ended.output += validated if ended.validate == 2 else ""
    after = _files(run_dir)
    ended.changed = sorted(name for name in before | after if before.get(name) != after.get(name))
    ended.records = {r["step"]: r for r in read_metrics(run_dir) if r["split"] == "train"}
    if case.get("prepare") == "replaced_data":
        _corpus(folder / "corpus", 1)
    return ended


def _recipe(folder: Path, saved: str) -> str:
    """A recipe of the defaults below a saved configuration, as `validate` takes one."""
    path = folder / "recipe.py"
    path.write_text(
        "from megatron_kd.resolve.configuration import defaults_for\n\n\n"
        f"def recipe():\n    return defaults_for({saved!r})\n"
    )
    return str(path)


def _files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@contextlib.contextmanager
def _printed(ended: Ended) -> Iterator[None]:
    """Keep what the block prints in `ended.output`."""
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(out):
        yield
    ended.output = out.getvalue()


@contextlib.contextmanager
def _noting(ended: Ended) -> Iterator[None]:
    """Note what is read for training in the block."""
    from megatron_kd.training.run_data import RunData

    original = RunData.training

    def training(data: RunData, *args: Any) -> Iterator[Any]:
        for micro_batch in original(data, *args):
            ended.samples += micro_batch.sample_ids
            ended.tokens += micro_batch.tokens.tolist()
            yield micro_batch

    with mock.patch.object(RunData, "training", training):
        yield


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[dict[str, Ended], dict[str, Ended]]]:
    """The uninterrupted runs, and how each case ended."""
    folder = tmp_path_factory.mktemp("begun")
    (bases,) = run_ranks(1, _bases, folder)
    (ended,) = run_ranks(1, _resumed, folder, CASES, timeout=300)
    yield bases, dict(zip((case["name"] for case in CASES), ended, strict=True))
    shutil.rmtree(folder)


def _params() -> Iterator[Any]:
    for case in CASES:
        marks = [pytest.mark.xfail(strict=True, reason="silent today")] if case.get("fails_today") else []
        yield pytest.param(case, id=case["name"], marks=marks)


@pytest.mark.slow
@pytest.mark.parametrize("case", _params())
def test_a_run_that_has_begun(case: dict[str, Any], outcomes: tuple[dict[str, Ended], dict[str, Ended]]) -> None:
    whole, ended = outcomes[0][case["run"]], outcomes[1][case["name"]]
    assert ended.code == case["code"], ended.output
    for words in case.get("says", []):
        assert re.search(words, ended.output), f"{words} is not in\n{ended.output}"
    for words in case.get("silent", []):
        assert not re.search(words, ended.output), f"{words} is in\n{ended.output}"
    if case["code"] == 2:
        assert ended.changed == [], "a refused run has changed files"
        assert ended.validate == 2, "validate accepts what the run refuses"
        return
    assert ended.validate == 0, ended.output
    for step, lr in case.get("lr", {}).items():
        assert ended.records[step]["lr"] == pytest.approx(lr, rel=1e-3), f"step {step}"
    if "last" in case:
        assert max(ended.records) == case["last"]
    if "first_sample" in case:
        assert ended.samples[0] == case["first_sample"]
    if case.get("same_data"):
        following = whole.tokens[case["from"] * 8 :]
        assert ended.tokens and all(a == b for a, b in zip(ended.tokens, following, strict=False)), "other samples"
    _compare_losses(case, whole, ended)


def _compare_losses(case: dict[str, Any], whole: Ended, ended: Ended) -> None:
    steps = range(case["from"] + 1, STEPS + 1)
    losses = [(whole.records[step]["loss"], ended.records.get(step, {}).get("loss")) for step in steps]
    if case.get("same"):
        assert all(a == b for a, b in losses), losses
    if case.get("close"):
        assert all(a == pytest.approx(b, rel=CLOSE) for a, b in losses), losses
    if case.get("steps_differ"):
        assert losses[0][0] == losses[0][1] and losses[-1][0] != losses[-1][1], losses
