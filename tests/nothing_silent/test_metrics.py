"""Inputs of `metrics.yaml`: what a run says, keeps and counts, against what a careful user expects.

All inputs run in one process after another, through `main`, as a user's recipe does.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import json
import os
import re
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import yaml

from megatron_kd.checkpoints.manifest import Manifest, read_manifest
from megatron_kd.runtime.files import FileRecord
from tests.faults.instants import Instant, at_instant
from tests.hooks import On
from tests.ranks import RankFailed, run_ranks
from tests.tiny import read_metrics, tiny_config

INPUTS: dict[str, list[dict[str, Any]]] = yaml.safe_load(Path(__file__).with_name("metrics.yaml").read_text())
BASE = (
    "train.train_iters=6", "validation.eval_interval=2", "validation.eval_iters=1", "checkpoint.save=true",
    "checkpoint.save_interval=2", "logger.progress=plain",
)  # fmt: skip
STEP = ("validation", "train")
OPENED = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]|\r")


@dataclass
class Outcome:
    """The end of the commands of one run folder: the exit code and the output of the last one."""

    run_dir: Path
    code: int | None = None
    said: str = ""
    export: tuple[int, str] | None = None
    best_at_end: dict[str, Any] = field(default_factory=dict)


def marked(kind: str) -> list[Any]:
    """The inputs of a kind; one that fails today is a strict xfail."""
    xfail = pytest.mark.xfail(strict=True, reason="fails today")
    return [pytest.param(row, id=row["id"], marks=[xfail] if row.get("fails_today") else []) for row in INPUTS[kind]]


# --- on the rank


def each(rows: list[dict[str, Any]], folder: Path) -> dict[str, Outcome]:
    """On a rank: the outcome of every row, one after the other."""
    return {row["id"]: one(row, row["commands"], folder / row["id"]) for row in rows}


def one(row: dict[str, Any], commands: list[list[str]], run_dir: Path) -> Outcome:
    """On a rank: run the commands in their order."""
    from megatron_kd import main

    outcome = Outcome(run_dir)
    for number, words in enumerate(commands):
        if number and "older_best" in row:
            write_older_best(newest(run_dir), row["older_best"])
        recipe = functools.partial(tiny_config, run_dir, distilled=row.get("recipe") != "labels")
        with contextlib.ExitStack() as held:
            printed = io.StringIO()
            held.enter_context(contextlib.redirect_stdout(printed))
            held.enter_context(contextlib.redirect_stderr(printed))
            hooks = around(row, run_dir, held)
            try:
                outcome.code = main(recipe, [*BASE, *words], hooks=hooks)
            except Exception:
                outcome.code, _ = None, traceback.print_exc()
        outcome.said = printed.getvalue()
    if "export_best" in row:
        outcome.export = exported(run_dir)
    return outcome


def around(row: dict[str, Any], run_dir: Path, held: contextlib.ExitStack) -> list[On]:
    """Set up the faults of a run: a kill, sleeps, data without a token that counts, weights that overflow."""
    from megatron_kd.training.run_data import RunData

    if row.get("masked_validation"):
        original = RunData.validation

        def masked(data: RunData) -> Iterator[Any]:
            for batch in original(data):
                yield replace(batch, loss_mask=0 * batch.loss_mask)

        held.enter_context(mock.patch.object(RunData, "validation", masked))
    sleeps = row.get("sleeps", {})
    for step in sleeps.get("before_data_of_steps", ()):
        at = Instant("phase", phase="forward and backward", step=step)
        held.enter_context(at_instant(at, run_dir, lambda _: time.sleep(sleeps["seconds"])))
    if sleeps.get("after_evaluations"):
        for step in range(1, 7):
            at = Instant("phase", phase="evaluation", step=step)
            held.enter_context(at_instant(at, run_dir, lambda _: time.sleep(sleeps["seconds"])))
    if row.get("overflowing_pairs"):
        return [On(after_step=overflow)]
    if "killed" in row and not (run_dir / "killed").exists():
        return [On(after_step=lambda run: run.step == row["killed"]["after_step"] and kill(run_dir))]
    return []


def overflow(run: Any) -> None:
    """Hidden states whose squares are beyond float32, after step 2; the logits are not."""
    if run.step == 2:
        run.students[0].decoder.final_layernorm.weight.data.fill_(1e22)


def kill(run_dir: Path) -> None:
    """End this process as `kill -9` does."""
    (run_dir / "killed").touch()
    os.kill(os.getpid(), signal.SIGKILL)


def exported(run_dir: Path) -> tuple[int, str]:
    """The exit code and the output of `megatron-kd export-hf RUN --best`."""
    from megatron_kd.commands.cli import main as megatron_kd

    with contextlib.redirect_stdout(io.StringIO()) as said, contextlib.redirect_stderr(said):
        try:
            code = megatron_kd(["export-hf", str(run_dir), "--best", "--output", str(run_dir / "exported")])
        except SystemExit as error:
            code = int(str(error.code))
    return code, said.getvalue()


def newest(run_dir: Path) -> Path:
    """The newest checkpoint of a run."""
    return sorted((run_dir / "checkpoints").iterdir())[-1]


def write_older_best(checkpoint: Path, best: dict[str, Any]) -> None:
    """Make a checkpoint hold the record of the best as earlier versions wrote it."""
    path = checkpoint / "run_state.json"
    text = json.dumps({**json.loads(path.read_text()), "best": best}, indent=1) + "\n"
    path.write_text(text)
    manifest = read_manifest(checkpoint)
    record = FileRecord(len(text.encode()), hashlib.sha256(text.encode()).hexdigest())
    files = {**manifest.files, path.name: record}
    (checkpoint / "manifest.json").write_text(
        Manifest(manifest.step, manifest.layout, manifest.config_sha256, files).text()
    )


# --- what must hold


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    """The outcome of each run; those that are killed have a process of their own."""
    folder = tmp_path_factory.mktemp("runs")
    alone = [row for row in INPUTS["runs"] if "killed" in row]
    (found,) = run_ranks(1, each, [row for row in INPUTS["runs"] if row not in alone], folder, timeout=300)
    for row in alone:
        with pytest.raises(RankFailed, match="exit code -9"):
            run_ranks(1, one, row, row["commands"][:1], folder / row["id"])
        (found[row["id"]],) = run_ranks(1, one, row, row["commands"][1:], folder / row["id"])
    return found


@pytest.mark.slow
@pytest.mark.parametrize("row", marked("runs"))
def test_a_run(row: dict[str, Any], outcomes: dict[str, Outcome]) -> None:
    outcome = outcomes[row["id"]]
    if outcome.code is None:
        pytest.fail(outcome.said)
    for key, wanted in row.items():
        if key in CHECKS:
            CHECKS[key](outcome, wanted)
    if "exit" not in row:
        assert outcome.code == 0, outcome.said


def lines_of(outcome: Outcome, split: str) -> list[dict[str, Any]]:
    return [line for line in read_metrics(outcome.run_dir) if line["split"] == split]


def exits(outcome: Outcome, code: int) -> None:
    assert outcome.code == code, outcome.said


def says(outcome: Outcome, texts: list[str]) -> None:
    assert [text for text in texts if text not in outcome.said] == [], outcome.said


def never_says(outcome: Outcome, texts: list[str]) -> None:
    assert [text for text in texts if text in outcome.said] == [], outcome.said


def logged(outcome: Outcome, steps: list[int]) -> None:
    assert [line["step"] for line in lines_of(outcome, "train")] == steps


def validated(outcome: Outcome, steps: list[int]) -> None:
    assert [line["step"] for line in lines_of(outcome, "validation")] == steps


def has_fields(outcome: Outcome, wanted: dict[str, list[str]]) -> None:
    for split, names in wanted.items():
        for line in lines_of(outcome, split):
            assert set(names) <= line.keys(), line


def lacks_fields(outcome: Outcome, wanted: dict[str, list[str]]) -> None:
    for split, names in wanted.items():
        for line in lines_of(outcome, split):
            assert not set(names) & line.keys(), line


def kept(outcome: Outcome, steps: list[int]) -> None:
    found = sorted(path.name for path in (outcome.run_dir / "checkpoints").iterdir())
    assert found == [f"iter_{step:07d}" for step in steps]


def best(outcome: Outcome, wanted: dict[str, Any]) -> None:
    lines = [line for line in lines_of(outcome, "validation") if line["step"] >= wanted.get("since", 0)]
    choose = {"min": min, "max": max}[wanted["wants"]]
    line = choose(lines, key=lambda line: line[wanted["metric"]])  # of equals the first
    said = json.loads((outcome.run_dir / "best.json").read_text())
    value = line[wanted["metric"]]
    assert (said["metric"], said["step"], said["value"]) == (wanted["metric"], line["step"], value)
    checkpoint = Path(said["checkpoint"])
    assert checkpoint.name == f"iter_{line['step']:07d}" and (outcome.run_dir / checkpoint).is_dir()


def export(outcome: Outcome, wanted: dict[str, Any]) -> None:
    assert outcome.export is not None
    code, said = outcome.export
    assert code == wanted["exit"] and all(text in said for text in wanted["says"]), said


def counts(outcome: Outcome, each: dict[str, int]) -> None:
    for line in read_metrics(outcome.run_dir):
        samples = line["step"] * each["samples_per_step"]
        assert line["consumed_samples"] == samples
        assert line["consumed_tokens"] == samples * each["tokens_per_sample"]


def slower(outcome: Outcome, wanted: dict[str, float]) -> None:
    for name, limit in wanted.items():
        assert all(line[name] < limit for line in lines_of(outcome, "train"))


def times_steps_alone(outcome: Outcome, _: bool) -> None:
    """A step cannot have taken longer than the time since the line of the validation before it."""
    lines = read_metrics(outcome.run_dir)
    between = [(before, line) for before, line in pairwise(lines) if (before["split"], line["split"]) == STEP]
    assert len(between) == 5
    for before, line in between:
        written, earlier = (datetime.fromisoformat(each["timestamp"]) for each in (line, before))
        assert line["seconds"] <= (written - earlier).total_seconds() + 0.01


def has_files(outcome: Outcome, names: list[str]) -> None:
    assert all((outcome.run_dir / name).exists() for name in names)


def has_no_files(outcome: Outcome, names: list[str]) -> None:
    assert not any((outcome.run_dir / name).exists() for name in names)


CHECKS: dict[str, Callable[[Outcome, Any], None]] = {
    "exit": exits, "says": says, "never": never_says, "logged": logged, "validated": validated, "fields": has_fields,
    "lacks": lacks_fields, "kept": kept, "best": best, "export_best": export, "counts": counts, "slower_than": slower,
    "times_steps_alone": times_steps_alone, "files": has_files, "no_files": has_no_files,
}  # fmt: skip


# --- the progress line


def displayed(row: dict[str, Any]) -> str:
    """The output of a step at a width."""
    from megatron_kd.training.hooks.progress import Display

    values = {
        "loss": row["loss"], "logits_loss": 0.1539, "intermediate_loss": 0.1101, "lm_loss": 3.9271,
        "lr": row["lr"], "tokens_per_second": row["tokens_per_second"],
        "loss_tokens_per_second": row["tokens_per_second"], "grad_norm": 1.0,
    }  # fmt: skip
    with contextlib.ExitStack() as held:
        said = held.enter_context(contextlib.redirect_stdout(io.StringIO()))
        if row.get("stderr") == "terminal":
            terminal = [held.enter_context(open(end, "w")) for end in os.openpty()][1]
            held.enter_context(contextlib.redirect_stderr(terminal))
        display = Display(row["style"], row["total"], row["step"] - 1)
        if "say" in row:
            display.say(row["say"])
        display.step(row["step"], values, logged=True)
        display.close()
    return said.getvalue()


@pytest.mark.parametrize("row", marked("shown"))
def test_a_progress_line(row: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(row["width"]))
    lines = [line.rstrip() for line in OPENED.sub("\n", displayed(row)).splitlines() if line.strip()]
    assert max(map(len, lines)) <= row["width"], lines
    assert row.get("say", lines[0]) in lines
    assert [text for text in row["texts"] if text not in lines[-1]] == [], lines


# --- hooks


@pytest.mark.parametrize("row", marked("hooks"))
def test_hooks_that_are_none(row: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from megatron_kd import main
    from megatron_kd.training.hooks.hook import Hook

    hooks = eval(row["value"], {"Hook": Hook})
    if not row["texts"]:
        # A configuration that is refused, so that no run starts: hooks that are right add nothing to its errors.
        assert main(lambda: tiny_config(tmp_path, iters=0), [], hooks=hooks) == 2
        assert "hooks" not in capsys.readouterr().err
        return
    assert main(lambda: tiny_config(tmp_path), [], hooks=hooks) == 2
    told = capsys.readouterr().err
    assert [text for text in row["texts"] if text not in told] == [], told
    assert "Traceback" not in told and not asdict(Outcome(tmp_path))["export"]
