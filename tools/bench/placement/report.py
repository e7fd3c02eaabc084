"""The tables that `teacher_placement.py` prints, with goals beside what was measured."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Sequence

from tools.bench.placement.figures import BODY, HEAD, STUDENT, Measured, Side, Sizes, one_copy, ratios

Table = dict[Side, Measured]

_MB = 1e6
EVEN = 1.1  # what a rank's share of a balanced body may be, in times of an even one


def report(measured: Table, sizes: Sizes, wide: Table, wide_vocab: int) -> str:
    """All tables. `wide`: traffic alone, at another vocabulary."""
    body = one_copy(sizes.teacher, sizes.vocab)[BODY]
    traffic = traffic_table({sizes.vocab: measured, wide_vocab: wide}, sizes)
    return "\n\n".join([_title(measured, sizes), memory_table(measured, body), step_table(measured), traffic])


def _title(measured: Table, sizes: Sizes) -> str:
    one = next(iter(measured.values()))
    teacher, student = (sum(one_copy(text, sizes.vocab).values()) for text in (sizes.teacher, sizes.student))
    return (
        f"{sizes.ranks} ranks, one thread each, fp32; teacher {sizes.teacher}, student {sizes.student}, V = "
        f"{sizes.vocab}: {teacher / _MB:.1f} and {student / _MB:.1f} MB, 1 to {teacher / student:.1f}; TP x PP of the "
        f"student {sizes.student_layout}, of a balanced teacher {sizes.teacher_layout}; {sizes.batch} sequences of "
        f"{sizes.seq} a step, micro-batches of {sizes.micro_batch}; median (range) of {len(one.steps)} rounds"
    )


def memory_table(measured: Table, body: int) -> str:
    """Weights by rank and in all, and Pss. `body`: bytes of one."""
    header = (
        "| teacher | body by rank, MB | head by rank, MB | teacher + student in all, MB | Pss by rank, MB | in all |"
    )
    lines = [header, _rule(header)]
    for side, found in measured.items():
        if side.teacher_batch is None:
            bodies, heads = ([rank.bytes_of(part) for rank in found.memory] for part in (BODY, HEAD))
            shared = found.host_bytes(BODY) < sum(bodies)
            body_cell = f"{_mb(bodies[:1])}, the same for all" if shared else _mb(bodies)
            everything = _mb([found.host_bytes(BODY, HEAD, STUDENT)])
            pss = [rank.pss for rank in found.memory]
            lines.append(f"| {side} | {body_cell} | {_mb(heads)} | {everything} | {_mb(pss)} | {_mb([sum(pss)])} |")
    lines.append("| **memory** | **measured** | **goal** | | | |")
    lines += [f"| {name} | {value} | {goal} | | | |" for name, value, goal in _goals(measured, body)]
    return "\n".join(lines)


def _goals(measured: Table, body: int) -> Iterator[tuple[str, str, str]]:
    sides = {str(side): found for side, found in measured.items()}

    def shares(name: str) -> list[float]:
        return [rank.bytes_of(BODY) / body for rank in sides[name].memory]

    if "balanced" in sides:
        goal = EVEN / len(sides["balanced"].memory)
        yield "balanced: fullest rank / body", f"{max(shares('balanced')):.3f}", f"<= {goal:.3f}"
    if "gpu0" in sides:
        first, *others = shares("gpu0")
        yield "gpu0: its rank, each other / body", f"{first:.2f}, {max(others, default=0):.2f}", "1, 0"
    if "cpu" in sides:
        shared = sum(rank.pss_shared for rank in sides["cpu"].memory) / body
        yield "cpu: all ranks' tensors, Pss / body", f"{sides['cpu'].host_bytes(BODY) / body:.2f}, {shared:.2f}", "1, 1"
    parts = BODY, HEAD, STUDENT
    if "colocated" in sides:
        everything = sides["colocated"].host_bytes(*parts)
        for name in ("balanced", "gpu0", "cpu"):
            if name in sides:
                yield f"colocated / {name}: in all", f"{everything / sides[name].host_bytes(*parts):.2f}", "520 / 160"


def step_table(measured: Table) -> str:
    """Seconds, waiting and what is sent."""
    reference = next((found for side, found in measured.items() if side.strategy == "colocated"), None)
    header = "| teacher | step, s | / colocated | waiting, least to most of the ranks | sent a step, KB |"
    lines = [header, _rule(header)]
    for side, found in measured.items():
        ratio = spread(ratios(found.seconds, reference.seconds)) if reference is not None else "-"
        shares = sorted(found.waiting(rank) for rank in range(len(found.memory)))
        lines.append(
            f"| {side} | {spread(found.seconds)} | {ratio} | {shares[0]:.0%} to {shares[-1]:.0%} "
            f"| {found.traffic.hidden / 1e3:,.0f} |"
        )
    return "\n".join(lines)


def traffic_table(by_vocab: dict[int, Table], sizes: Sizes) -> str:
    """Hidden states beside logits, where any are sent."""
    hidden_size = sizes.teacher.lower().split("x")[1]
    header = "| V | G | teacher | hidden states, KB a step | logits instead, KB | logits / hidden states |"
    lines = [header, _rule(header)]
    for vocab, measured in by_vocab.items():
        for side, found in measured.items():
            sent = found.traffic
            if sent.hidden and side.teacher_batch is None:
                kilobytes = f"{sent.hidden / 1e3:,.0f} | {sent.logits / 1e3:,.0f}"
                lines.append(f"| {vocab} | {hidden_size} | {side} | {kilobytes} | {sent.logits / sent.hidden:.0f} |")
    lines.append("| **goal** | | | | | >= 10 at V = 32768 |")
    return "\n".join(lines)


def spread(values: Sequence[float]) -> str:
    """Median and range."""
    low, middle, high = (f"{value:.2f}" for value in (min(values), statistics.median(values), max(values)))
    return f"{middle} ({low}-{high})"


def _rule(header: str) -> str:
    return "|---|" + "---:|" * (header.count("|") - 2)


def _mb(values: Iterable[int]) -> str:
    return " / ".join(f"{value / _MB:,.1f}" for value in values)
