"""The lines that show a step and an evaluation, fitted to the width of a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

NARROWEST = 60  # columns; narrower terminals break the lines

# Metrics in the order in which they are shown, after the total loss.
_METRICS = (
    "lm_loss", "logits_loss", "intermediate_loss", "teacher_kl", "teacher_top1_agreement", "teacher_top5_agreement",
    "perplexity",
)  # fmt: skip


def step_line(step: int, total: int, values: Mapping[str, float], seconds_left: float, width: int) -> str:
    """A step in one line: with its learning rate and the time left, whatever the width; the rest as far as it fits.

    Args:
        step, total: finished steps, and those of the whole run.
        values: of the step's "train" line.
        seconds_left: until the end.
        width: in columns; less than `NARROWEST` counts as that.
    """
    start, end = f"step {step}/{total}", [f"lr {values['lr']:.3g}", f"ETA {duration(seconds_left)}"]
    pace, loss = f"{amount(values['tokens_per_second'])} tokens/s", _shown(values, ["loss"])
    metrics = _shown(values, _METRICS)
    wanted = [[start, *loss], *([start, pace, *loss, *metrics[:count]] for count in range(len(metrics) + 1))]
    fitting = [parts for parts in wanted if _fits([*parts, *end], width)]
    return "  ".join([*(fitting[-1] if fitting else [start]), *end])


def evaluation_lines(step: int, values: Mapping[str, float], width: int) -> list[str]:
    """All metrics of an evaluation, in as many lines as they take."""
    lines = [f"validation after {step} step{'' if step == 1 else 's'}"]
    if values.get("tokens") == 0:
        return [f"warning: {lines[0]} measures nothing: no token of its data counts in the loss"]
    for metric in _shown(values, ["loss", *_METRICS]):
        if _fits([lines[-1], metric], width):
            lines[-1] += f"  {metric}"
        else:
            lines.append(f"    {metric}")
    return lines


def amount(value: float) -> str:
    """A number of things in at most four digits: 640, 25.3k, 1.2M."""
    for unit, size in {"G": 1e9, "M": 1e6, "k": 1e3}.items():
        if value >= max(0.9995 * size, 9999.5):
            return f"{value / size:.3g}{unit}"
    return f"{value:.0f}"


def duration(seconds: float) -> str:
    """Hours, minutes and seconds; days and hours from 100 hours on."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours < 100 else f"{hours // 24}d {hours % 24:02d}h"


def number(value: float) -> str:
    """A metric in at most seven characters, for values that are not negative."""
    if value >= 1e4 or 0 < value < 1e-3:
        return f"{value:.1e}"
    return f"{value:.4f}" if value < 100 else f"{value:.2f}"


def _shown(values: Mapping[str, float], names: Sequence[str]) -> list[str]:
    return [f"{name} {number(values[name])}" for name in names if name in values]


def _fits(parts: Sequence[str], width: int) -> bool:
    return len("  ".join(parts)) <= max(width, NARROWEST)
