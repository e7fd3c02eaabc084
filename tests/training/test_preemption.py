"""A run that is asked to stop: all ranks stop after one step, save and end with 75; it resumes bitwise."""

from __future__ import annotations

import contextlib
import io
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from megatron_kd.config.container import ConfigContainer
from tests.faults.instants import Instant, at_instant, sent
from tests.ranks import run_ranks
from tests.test_run import without_times
from tests.tiny import read_metrics, tiny_config

ITERS = 6
LAYOUTS: dict[str, dict[str, Any]] = {
    "TP2": {"tp": 2},
    "PP2": {"pp": 2, "micro_batch_size": 4},
    "DP2": {"micro_batch_size": 4},
}


def config(run_dir: Path, layout: str = "DP2", **settings: Any) -> ConfigContainer:
    cfg = tiny_config(run_dir, iters=ITERS, **{"save": True, "save_interval": 100, **settings}, **LAYOUTS[layout])
    cfg.validation.eval_interval, cfg.validation.eval_iters = 2, 3
    return cfg


Signals = list[tuple[int, str, int, int]]  # step, phase, rank, signal


def run_and_signal(cfg: ConfigContainer, signals: Signals) -> tuple[int, str, int]:
    """On a rank: run `cfg`; on entering a phase of a step, a rank sends itself a signal.

    Returns:
        The exit code, what is reported on stderr, and how many signals this rank sent.
    """
    from megatron_kd import main

    rank, told = int(os.environ["RANK"]), io.StringIO()
    sent_here = Path(f"{cfg.logger.run_dir}_sent_{rank}")
    with contextlib.ExitStack() as held:
        for step, phase, who, number in signals:
            if who == rank:
                at = Instant("phase", phase=phase, step=step)
                held.enter_context(at_instant(at, Path(cfg.logger.run_dir), sent(number, sent_here)))
        held.enter_context(contextlib.redirect_stderr(told))
        code = main(lambda: cfg, [])
    return code, told.getvalue(), len(sent_here.read_text().splitlines()) if sent_here.exists() else 0


def run_each(cases: list[tuple[ConfigContainer, Signals]]) -> list[tuple[int, str, int]]:
    """On a rank: one run after the other."""
    return [run_and_signal(cfg, signals) for cfg, signals in cases]


def records(run_dir: Path) -> list[dict[str, Any]]:
    return without_times(read_metrics(run_dir))


def saved_steps(run_dir: Path) -> list[int]:
    folder = run_dir / "checkpoints"
    return sorted(int(path.name.removeprefix("iter_")) for path in folder.iterdir()) if folder.exists() else []


TERM, USR1, INT = int(signal.SIGTERM), int(signal.SIGUSR1), int(signal.SIGINT)
FORWARD, EVALUATION, SAVING = "forward and backward", "evaluation", "saving a checkpoint"
# By layout: what is sent, and the step that is then the last.
CASES: dict[str, list[tuple[Signals, int]]] = {
    "TP2": [([(3, FORWARD, 1, USR1)], 3)],
    "PP2": [([(3, FORWARD, 0, TERM)], 3)],
    "DP2": [
        # Further signals, while it saves, change nothing.
        ([(3, FORWARD, 1, INT), (3, SAVING, 1, USR1), (3, SAVING, 0, TERM), (3, SAVING, 1, TERM)], 3),
        ([(3, "optimizer step", 0, TERM)], 4),  # too late for step 3; step 4 then owes an evaluation
        ([(2, EVALUATION, 1, USR1)], 2),  # in the evaluation, which is left
        ([(ITERS, FORWARD, 0, TERM)], ITERS),  # all that is left is the last evaluation
    ],
}


@pytest.mark.slow
@pytest.mark.parametrize("layout", CASES)
def test_all_ranks_stop_after_one_step_and_the_run_goes_on_bitwise(layout: str, tmp_path: Path) -> None:
    broken = [config(tmp_path / str(number), layout) for number in range(len(CASES[layout]))]
    runs: list[tuple[ConfigContainer, Signals]] = [(config(tmp_path / "unbroken", layout), [])]
    runs += [(cfg, signals) for cfg, (signals, _) in zip(broken, CASES[layout], strict=True)]
    stopped = run_ranks(2, run_each, runs)
    seen = [(saved_steps(tmp_path / str(n)), records(tmp_path / str(n))) for n in range(len(broken))]
    assert [[code for code, _, _ in rank] for rank in stopped] == [[0] + [75] * len(broken)] * 2
    for number, (signals, step) in enumerate(CASES[layout]):
        assert sum(rank[number + 1][2] for rank in stopped) == len(signals), "not every signal was sent"
        steps, told = seen[number]
        assert steps == [step] and max(record["step"] for record in told) == step
        assert f"asked to stop: {step} of {ITERS} steps are done and saved" in stopped[0][number + 1][1]
    resumed = run_ranks(2, run_each, [(cfg, []) for cfg in broken])
    assert [[code for code, _, _ in rank] for rank in resumed] == [[0] * len(broken)] * 2
    for number in range(len(broken)):
        assert records(tmp_path / str(number)) == records(tmp_path / "unbroken")
        assert (tmp_path / str(number) / "exit_code").read_text() == "0\n"


def test_a_run_that_has_nothing_left_to_do_is_done_and_one_that_does_not_save_says_so(tmp_path: Path) -> None:
    complete, unsaved = config(tmp_path / "a"), config(tmp_path / "b", save=False)
    complete.validation.eval_iters = 0
    cases = [(complete, [(ITERS, FORWARD, 0, TERM)]), (unsaved, [(1, FORWARD, 0, TERM)])]
    (done, lost), _ = run_ranks(2, run_each, cases)
    assert done == (0, "", 1)
    assert lost == (75, "error: asked to stop: 1 of 6 steps are done and lost, since checkpoint.save=false\n", 1)
    assert saved_steps(tmp_path / "b") == [] and (tmp_path / "b/exit_code").read_text() == "75\n"


def stop_while_starting(cfg: ConfigContainer) -> int:
    """On a rank: run `cfg`, and ask it to stop when it is about to build its part."""
    from megatron_kd import main

    run_dir = Path(cfg.logger.run_dir)
    with at_instant(Instant("call", part="build_run"), run_dir, sent(signal.SIGTERM, run_dir.parent / "sent")):
        return main(lambda: cfg, [])


def test_a_run_that_starts_ends_where_it_is(tmp_path: Path) -> None:
    cfg = config(tmp_path / "a")
    assert run_ranks(2, stop_while_starting, cfg) == [75, 75]
    assert (tmp_path / "a/exit_code").read_text() == "75\n"
    assert (tmp_path / "sent").read_text() == "build_run\n" * 2
    assert saved_steps(tmp_path / "a") == [] and not (tmp_path / "a/metrics.jsonl").exists()
