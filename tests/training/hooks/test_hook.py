"""Hooks: which events come when, on which ranks, and what happens when a hook fails."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from megatron_kd.config.container import ConfigContainer
from megatron_kd.training.hooks.hook import Hook, Loop, hook_problems
from tests.ranks import run_ranks
from tests.recipes.launch import ROOT
from tests.tiny import read_metrics, tiny_config, train_and_read


class Noting(Hook):
    """Notes every event, with the step that it comes after."""

    def __init__(self, name: str, events: list[str]) -> None:
        self._name, self._events = name, events

    def before_run(self, loop: Loop) -> None:
        self._note("before_run", loop)

    def before_step(self, loop: Loop) -> None:
        self._note("before_step", loop)

    def after_step(self, loop: Loop, values: Mapping[str, float]) -> None:
        self._note("after_step", loop)
        assert values["loss"] > 0 and "tokens_per_second" in values

    def after_evaluation(self, loop: Loop, values: Mapping[str, float]) -> None:
        self._note("after_evaluation", loop)
        assert values["perplexity"] > 0

    def after_save(self, loop: Loop, checkpoint: Path) -> None:
        self._note("after_save", loop)
        assert (checkpoint / "manifest.json").exists()

    def close(self, loop: Loop, error: BaseException | None) -> None:
        self._note(f"close {error!r}", loop)

    def _note(self, event: str, loop: Loop) -> None:
        self._events.append(f"{self._name} {event} {loop.run.step}")


class Failing(Hook):
    """Raises an error that is not one of the package's."""

    def before_step(self, loop: Loop) -> None:
        if loop.run.step == 1:
            raise KeyError("of the hook")


def events_of(cfg: ConfigContainer, *more: Hook) -> list[str]:
    """On a rank: run `cfg` with two hooks that note their events, and `more`."""
    from megatron_kd.training.train import train

    events: list[str] = []
    try:
        train(cfg, [Noting("a", events), *more, Noting("b", events)])
    except KeyError as error:
        events.append(repr(error))
    return events


def both(event: str) -> list[str]:
    return [f"a {event}", f"b {event}"]


def test_a_step_comes_before_its_evaluation_and_that_before_its_save_on_every_rank(tmp_path: Path) -> None:
    cfg = tiny_config(tmp_path, iters=3, micro_batch_size=4, save=True, save_interval=2)
    cfg.validation.eval_interval = 2
    expected = [
        *both("before_run 0"),
        *both("before_step 0"), *both("after_step 1"),
        *both("before_step 1"), *both("after_step 2"), *both("after_evaluation 2"), *both("after_save 2"),
        *both("before_step 2"), *both("after_step 3"), *both("after_evaluation 3"), *both("after_save 3"),
        "b close None 3", "a close None 3",
    ]  # fmt: skip
    assert run_ranks(2, events_of, cfg) == [expected] * 2


def test_a_hook_that_fails_ends_the_run_and_the_others_are_closed_with_its_error(tmp_path: Path) -> None:
    (events,) = run_ranks(1, events_of, tiny_config(tmp_path), Failing())
    error = repr(KeyError("of the hook"))
    assert events[-4:] == ["a before_step 1", f"b close {error} 1", f"a close {error} 1", error]


def test_what_is_periodic_is_due_at_its_interval_and_after_the_last_step(tmp_path: Path) -> None:
    cfg = tiny_config(tmp_path, iters=5, save=True, save_interval=4)
    cfg.logger.log_interval, cfg.validation.eval_interval = 2, 3
    (records,) = run_ranks(1, train_and_read, cfg)
    assert [r["step"] for r in records if r["split"] == "train"] == [2, 4, 5]
    assert [r["step"] for r in records if r["split"] == "validation"] == [3, 5]
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["iter_0000004", "iter_0000005"]


class Alarm(Hook):
    """Not called."""


@pytest.mark.parametrize(
    ("hooks", "told"),
    [
        ([Alarm(), Alarm], ["hooks[1]=<class", "pass Alarm(...)"]),
        ([print], ["hooks[0]=<built-in function print>: is not a hook"]),
        (Alarm(), ["hooks=<", "must be a list"]),
        ("Alarm", ["hooks='Alarm': must be a list"]),
    ],
)
def test_anything_else_than_a_hook_is_refused_before_anything_starts(
    hooks: Any, told: list[str], tmp_path: Path
) -> None:
    from megatron_kd.errors import ConfigError
    from megatron_kd.training.train import train

    with pytest.raises(ConfigError) as error:
        train(tiny_config(tmp_path / "run"), hooks)
    assert [text for text in told if text not in str(error.value)] == []
    assert not (tmp_path / "run").exists()
    assert list(hook_problems((Alarm(),))) == []


def run_documented(cfg: ConfigContainer) -> str:
    """On a rank: run `cfg` with the hook of the user guide, which is to report each step; what is printed."""
    from megatron_kd.training.train import distill

    guide = (ROOT / "docs/distillation.md").read_text(encoding="utf-8")
    (example,) = [text for text in re.findall(r"```python\n(.*?)```", guide, re.DOTALL) if "(Hook)" in text]
    names: dict[str, Any] = {}
    exec(compile(example, "distillation.md", "exec"), names)
    cfg.logger.progress = "plain"
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        distill(cfg, [names["GradientAlarm"](factor=1e-3)])
    return printed.getvalue()


def test_the_hook_of_the_user_guide_works(tmp_path: Path) -> None:
    (printed,) = run_ranks(1, run_documented, tiny_config(tmp_path, iters=3))
    norms = [record["grad_norm"] for record in read_metrics(tmp_path) if record["split"] == "train"]
    assert f"the gradient norm of step 2 is {norms[1]:.2f}\n" in printed
    assert f"the gradient norm of step 3 is {norms[2]:.2f}\n" in printed
    assert "of step 1 is" not in printed
