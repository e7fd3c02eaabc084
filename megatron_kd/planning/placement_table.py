"""A plan as text."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from megatron_kd.config.gpt_model import GPTModelProvider
from megatron_kd.placement.parameters import shard_parameters
from megatron_kd.placement.workload import Workload
from megatron_kd.planning.estimate import USABLE, Choice, Estimate
from megatron_kd.planning.memory import PARTS

GB, MB = 1e9, 1e6


def plan_text(run: Workload, choice: Choice, device_memory_bytes: float | None) -> str:
    """The output of `megatron-kd plan`."""
    blocks = [
        _heading(run),
        _grid(_rows(choice.estimates, device_memory_bytes)),
        _work(choice.estimates[0]),
        *(
            f"{e.strategy.name} does not support this: {'; '.join(map(str, e.cannot))}"
            for e in choice.estimates
            if e.cannot
        ),
        f"auto takes {choice.strategy.name}: {choice.reason}",
    ]
    return "\n\n".join(blocks) + "\n"


def memory_table(estimates: Sequence[Estimate], device_memory_bytes: float | None) -> str:
    """The table of that output, which a run with `logger.verbose` prints when it selects a strategy itself."""
    return _grid(_rows(estimates, device_memory_bytes))


def _heading(run: Workload) -> str:
    cfg, width = run.cfg, run.padded_vocab_size
    teacher, student = (_billions(model, width) for model in (run.teacher, run.model))
    return (
        f"{teacher} -> {student} on {run.world_size} {'GPUs' if run.device == 'cuda' else 'CPU ranks'}, "
        f"{run.ranks_per_machine} a machine; student {run.student}, {cfg.mixed_precision.precision}\n"
        f"a step: {run.global_batch_size} sequences of {run.model.seq_length} tokens, "
        f"{run.num_microbatches} micro-batch{'' if run.num_microbatches == 1 else 'es'} "
        f"of {cfg.train.micro_batch_size} per rank"
    )


def _billions(model: GPTModelProvider, width: int) -> str:
    count = shard_parameters(model, padded_vocab_size=width).total
    return f"{count / 1e9:.1f} B" if count >= 1e8 else f"{count / 1e6:.2f} M"


def _rows(estimates: Sequence[Estimate], memory: float | None) -> list[list[str]]:
    unit, amount = _unit(max(e.peak_bytes for e in estimates))
    rows = [["", *(e.strategy.name for e in estimates)], ["teacher's body", *(str(e.teacher) for e in estimates)]]
    rows.append([f"largest rank at its peak, {unit}", *("" for _ in estimates)])
    rows += [[f"  {part}", *(amount(e.largest.peak.parts[part]) for e in estimates)] for part in PARTS]
    if any(e.shared_on_device for e in estimates):
        rows.append(["  its part of the shared teacher", *(amount(e.shared_on_device) for e in estimates)])

    def row(name: str, value: Callable[[Estimate], str]) -> None:
        rows.append([name, *(value(e) for e in estimates)])

    row("  in all", lambda e: amount(e.peak_bytes))
    row("  at the time of", lambda e: e.largest.peak.name)
    row(f"host memory a machine, {unit}", lambda e: amount(e.host_bytes_per_machine))
    row("student's pipeline bubble", lambda e: f"{e.bubble:.0%}")
    row("teacher's pipeline bubble", lambda e: f"{e.teacher_bubble:.0%}")
    rows.append([f"sent by a rank in a step, {unit}", *("" for _ in estimates)])
    row("  tensor parallelism", lambda e: amount(e.traffic.tensor_parallel))
    row("  pipeline", lambda e: amount(e.traffic.pipeline))
    row("  data parallelism", lambda e: amount(e.traffic.data_parallel))
    row("  hidden states handed over", lambda e: amount(e.traffic.hand_over))
    row("  (logits would be)", lambda e: f"({amount(e.traffic.as_logits)})" if e.traffic.as_logits else "")
    row("  teacher, host to device", lambda e: amount(e.traffic.streamed))
    fastest = min((e.seconds for e in estimates if not e.cannot), default=1.0)
    row("rough time, fastest = 1", lambda e: "" if e.cannot else f"{e.seconds / fastest:.2f}")
    if memory is not None:
        row(f"fits in {USABLE:.0%} of {memory / GB:.3g} GB", lambda e: _verdict(e, memory))
    return rows


def _verdict(estimate: Estimate, memory: float) -> str:
    if estimate.cannot:
        return "cannot run"
    return "yes" if estimate.fits(memory) else "no"


def _work(estimate: Estimate) -> str:
    flops = estimate.flops
    parts = {
        "teacher 2 N_t": flops.teacher,
        "student 6 N_s": flops.student,
        "recompute": flops.recompute,
        "attention": flops.attention,
    }
    return f"GFLOP per token: {flops.total / 1e9:,.3g} = " + " + ".join(f"{n} {v / 1e9:,.3g}" for n, v in parts.items())


def _unit(largest: float) -> tuple[str, Callable[[float], str]]:
    """The unit for amounts up to `largest` bytes, and how one is written in it."""
    name, size = ("GB", GB) if largest >= GB else ("MB", MB)
    return name, lambda count: _number(count / size)


def _number(value: float) -> str:
    if value == 0:
        return "-"
    return f"{value:,.1f}" if value >= 10 else f"{value:.2f}" if value >= 0.095 else f"{value:.4f}"


def _grid(rows: list[list[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )
