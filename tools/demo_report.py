"""The demo's report: a table, the numbers behind it, and a plot of the losses."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from tools.demo_runs import Result

_NAMES = {
    "teacher": "teacher",
    "untrained": "student, as pruned",
    "distilled": "student, distilled",
    "labels": "student, labels alone",
}
_HEADER = ("model", "learning rate", "validation LM loss", "perplexity", "training tokens", "wall time")


def best_of_each(results: Sequence[Result]) -> dict[str, list[Result]]:
    """For each kind, the run with the lowest held-out loss of every seed."""
    best: dict[str, list[Result]] = {}
    for kind in (kind for kind in _NAMES if any(result.kind == kind for result in results)):
        seeds = dict.fromkeys(result.seed for result in results if result.kind == kind)
        best[kind] = [
            min((r for r in results if (r.kind, r.seed) == (kind, seed)), key=lambda r: r.lm_loss) for seed in seeds
        ]
    return best


def table(results: Sequence[Result]) -> str:
    """The best run of each kind as a Markdown table; over several seeds, means and standard deviations."""
    rows = [_HEADER]
    for kind, runs in best_of_each(results).items():
        rows.append(
            (
                _NAMES[kind],
                ", ".join(dict.fromkeys(_rate(run.lr) for run in runs)),
                _average(runs, lambda run: run.lm_loss, 3),
                _average(runs, lambda run: run.perplexity, 1),
                f"{round(statistics.mean(run.tokens for run in runs)):,}",
                f"{round(statistics.mean(run.wall_s for run in runs))} s",
            )
        )
    return _markdown(rows)


def sweep_table(results: Sequence[Result]) -> str:
    """Every run's held-out loss as a Markdown table: one row per kind and learning rate, one column per seed."""
    seeds = list(dict.fromkeys(result.seed for result in results))
    rows = [("model", "learning rate", *(f"seed {seed}" for seed in seeds))]
    for kind, lr in dict.fromkeys((result.kind, result.lr) for result in results):
        losses = {result.seed: result.lm_loss for result in results if (result.kind, result.lr) == (kind, lr)}
        rows.append((_NAMES[kind], _rate(lr), *(f"{losses[seed]:.3f}" for seed in seeds)))
    return _markdown(rows)


def gap_table(results: Sequence[Result]) -> str:
    """The share of a student's gap to the teacher that distillation recovers, as a Markdown table.

    For each seed it is (loss - distilled loss) / (loss - teacher's loss), once for the student as pruned and once for
    the one trained on labels alone, each at its best learning rate.
    """
    best = best_of_each(results)
    rows = [("student", "gap to the teacher (nats per token)", "left after distillation", "share recovered")]
    for kind in ("untrained", "labels"):
        triples = list(zip(best["teacher"], best[kind], best["distilled"], strict=True))
        rows.append(
            (
                _NAMES[kind],
                _mean([other.lm_loss - teacher.lm_loss for teacher, other, _ in triples], 3),
                _mean([distilled.lm_loss - teacher.lm_loss for teacher, _, distilled in triples], 3),
                _mean(
                    [
                        100 * (other.lm_loss - distilled.lm_loss) / (other.lm_loss - teacher.lm_loss)
                        for teacher, other, distilled in triples
                    ],
                    1,
                )
                + " %",
            )
        )
    return _markdown(rows)


def write_report(folder: Path, results: Sequence[Result], command: str, *more: str) -> list[Path]:
    """Write `results.json`, `results.md` and `curves.png` into `folder`, and return their paths.

    The tables in `more` go between the two of `results.md`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    numbers, text, picture = (folder / name for name in ("results.json", "results.md", "curves.png"))
    numbers.write_text(json.dumps({"command": command, "runs": [asdict(r) for r in results]}, indent=1) + "\n")
    parts = [f"`{command}`", table(results), *more, "Every run's validation LM loss:", sweep_table(results)]
    text.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    _draw(picture, best_of_each(results))
    return [text, numbers, picture]


def _average(runs: Sequence[Result], value: Callable[[Result], float], digits: int) -> str:
    return _mean([value(run) for run in runs], digits)


def _rate(lr: float) -> str:
    return f"{lr:g}" if lr else "-"  # not trained


def _mean(values: Sequence[float], digits: int) -> str:
    """The mean, with the standard deviation where there are several."""
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{spread}"


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    aligned = [
        [
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        for row in rows
    ]
    rule = ["-" * width if column == 0 else "-" * (width - 1) + ":" for column, width in enumerate(widths)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [aligned[0], rule, *aligned[1:]])


def _draw(path: Path, best: dict[str, list[Result]]) -> None:
    import matplotlib

    matplotlib.use("Agg")  # no display needed
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.2), dpi=150)
    for kind, colour in (("labels", "tab:orange"), ("distilled", "tab:blue")):
        for index, run in enumerate(best[kind]):
            steps, losses = zip(*run.curve, strict=True)
            label = _NAMES[kind] if index == 0 else None
            axes.plot(steps, losses, color=colour, marker="o", markersize=3, label=label)
    teacher = statistics.mean(run.lm_loss for run in best["teacher"])
    axes.axhline(teacher, color="tab:gray", linestyle="--", label="teacher, fully trained")
    axes.set(xlabel="student's training steps", ylabel="validation LM loss (nats per token)")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)
