"""The demo's training runs, started with torchrun. Interrupted runs are resumed, and equal finished ones reused."""

from __future__ import annotations

import hashlib
import json
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_kd.config.run_config import dump_config
from megatron_kd.resolve.configuration import with_arguments
from megatron_kd.resolve.recipe_files import load_recipe

_RANKS = 2
_TAIL_LINES = 15


class RunFailed(Exception):
    """A run has ended with an exit code other than 0."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@dataclass(frozen=True, kw_only=True)
class Job:
    """One training run of the demo.

    Attributes:
        kind: "teacher", "distilled", "labels" or, for a student that is only evaluated, "untrained".
        overrides: of the recipe, without `logger.run_dir`.
        inputs: fingerprint of the files the run reads, which its configuration only names.
    """

    kind: str
    seed: int
    lr: float
    recipe: str
    overrides: tuple[str, ...]
    run_dir: Path
    inputs: str

    @property
    def arguments(self) -> list[str]:
        """The recipe's command line."""
        return [*self.overrides, f"logger.run_dir={self.run_dir}"]

    @property
    def command(self) -> list[str]:
        """The whole command, torchrun included."""
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={_RANKS}"]
        return [*torchrun, self.recipe, *self.arguments]

    @property
    def fingerprint(self) -> str:
        """A hash of the resolved configuration and of the files it reads: equal for runs that train the same model."""
        config = dump_config(with_arguments(load_recipe(self.recipe)(), self.arguments))
        return hashlib.sha256(f"{config}{self.inputs}".encode()).hexdigest()

    @property
    def title(self) -> str:
        """The name of the run in the demo's output."""
        return f"{self.kind}, seed {self.seed}" + (f", learning rate {self.lr:g}" if self.lr else "")


@dataclass(frozen=True, kw_only=True)
class Result:
    """The result of a finished run. Losses are held-out cross entropies in nats per token, `curve` is by step."""

    kind: str
    seed: int
    lr: float
    lm_loss: float
    perplexity: float
    tokens: int
    wall_s: float
    curve: list[tuple[int, float]]


def finish(job: Job, say: Callable[[str], None] = print) -> Result:
    """Run `job` to its end, resuming an earlier attempt, or read the result of an equal finished run.

    A run in the same folder with another configuration, corpus or teacher is deleted first.

    Raises:
        RunFailed: the run has ended with an exit code other than 0.
    """
    state = _known_state(job)
    if state["finished"]:
        say(f"  finished earlier, in {job.run_dir}")
    else:
        say("  " + shlex.join(["torchrun", *job.command[3:]]))
        _run(job, state, say)
    return _result(job, state)


def _known_state(job: Job) -> dict[str, Any]:
    """The record of an equal run in the job's folder. Otherwise that of a new run, in a folder emptied for it."""
    fingerprint = job.fingerprint
    file = _state_file(job)
    known: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if known.get("fingerprint") == fingerprint:
        return known
    shutil.rmtree(job.run_dir, ignore_errors=True)
    job.run_dir.mkdir(parents=True)
    return {"fingerprint": fingerprint, "finished": False, "wall_s": 0.0}


def _run(job: Job, state: dict[str, Any], say: Callable[[str], None]) -> None:
    _write_state(job, state)
    started, before = time.monotonic(), state["wall_s"]
    log = job.run_dir / "log.txt"
    try:
        code = _stream(job.command, log, say)
    finally:  # the time of an interrupted attempt counts, too
        state["wall_s"] = before + time.monotonic() - started
        _write_state(job, state)
    if code:
        recorded = job.run_dir / "exit_code"  # torchrun itself returns 1, whatever its ranks returned
        code = int(recorded.read_text(encoding="ascii")) or code if recorded.is_file() else code
        tail = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-_TAIL_LINES:])
        raise RunFailed(f"{tail}\n{job.title}: failed with exit code {code}; its log is {log}", code)
    state["finished"] = True
    _write_state(job, state)


def _stream(command: Sequence[str], log: Path, say: Callable[[str], None]) -> int:
    """Run a command, show its output, and append output and errors to `log`. Returns the exit code."""
    with log.open("a", encoding="utf-8") as file:
        file.write(f"$ {shlex.join(command)}\n")
        file.flush()
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=file, text=True) as process:
            assert process.stdout is not None
            for line in process.stdout:
                file.write(line)
                file.flush()
                say(f"    {line.rstrip()}")
    return process.returncode


def _result(job: Job, state: dict[str, Any]) -> Result:
    lines = (job.run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    validation = [record for record in records if record["split"] == "validation"]
    last_train = [record for record in records if record["split"] == "train"][-1]
    return Result(
        kind=job.kind,
        seed=job.seed,
        lr=job.lr,
        lm_loss=validation[-1]["lm_loss"],
        perplexity=validation[-1]["perplexity"],
        tokens=last_train["step"] * last_train["tokens"] if job.kind != "untrained" else 0,
        wall_s=state["wall_s"],
        curve=[(record["step"], record["lm_loss"]) for record in validation],
    )


def _state_file(job: Job) -> Path:
    return job.run_dir / "demo.json"


def _write_state(job: Job, state: dict[str, Any]) -> None:
    _state_file(job).write_text(json.dumps(state), encoding="utf-8")
