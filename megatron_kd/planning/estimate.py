"""Everything a plan says of one strategy, and which strategy `auto` takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from megatron_kd.config.problem import Problem
from megatron_kd.errors import ConfigError
from megatron_kd.placement.grid import Grid
from megatron_kd.placement.registry import STRATEGIES
from megatron_kd.placement.strategy import Strategy
from megatron_kd.placement.workload import Workload
from megatron_kd.planning.flops import Flops, busiest_rank, flops_per_token, student_bubble, teacher_bubble
from megatron_kd.planning.memory import RankMemory, rank_memories
from megatron_kd.planning.scenario import Scenario
from megatron_kd.planning.traffic import Traffic, traffic

# Of a device's memory, what a plan may fill: the rest is for the allocator's gaps, communicators, the CUDA context
# and the error of the estimate.
USABLE = 0.9


@dataclass(frozen=True)
class Speeds:
    """Round numbers to compare strategies with, not to predict times.

    Attributes:
        operations: FLOP/s of a rank.
        machine, links, host: bandwidth of a rank in bytes/s, within a machine, between machines, and from host memory.
    """

    operations: float
    machine: float
    links: float
    host: float


# An H100 at 40% of its bf16 peak, NVLink, InfiniBand at 400 Gb/s, and PCIe 5 at half its rate, since neighbours share
# the host's memory; and a pair of CPU cores with gloo.
SPEEDS = {"cuda": Speeds(4e14, 3e11, 5e10, 3e10), "cpu": Speeds(5e10, 1e9, 1e9, 1e10)}


@dataclass(frozen=True)
class Estimate:
    """One strategy.

    Attributes:
        strategy: where the teacher is.
        teacher: the ranks of the teacher's body.
        ranks: memory of one rank of each kind.
        host_copy: bytes of the teacher in a machine's host memory, outside its ranks' own.
        host_bytes_per_machine: bytes of a machine's host memory in all.
        shared_on_device: a rank's part of `host_copy`, where ranks compute in host memory.
        flops: of a token.
        bubble, teacher_bubble: shares of the student's and the teacher's pass that stages wait for each other.
        traffic: of a step.
        seconds: a rough time of a step, to compare with.
        cannot: why the strategy does not support this layout; empty if it does.
    """

    strategy: Strategy
    teacher: Grid
    ranks: tuple[RankMemory, ...]
    host_copy: int
    host_bytes_per_machine: int
    shared_on_device: int
    flops: Flops
    bubble: float
    teacher_bubble: float
    traffic: Traffic
    seconds: float
    cannot: tuple[Problem, ...]

    @cached_property
    def largest(self) -> RankMemory:
        """The rank that needs most."""
        return max(self.ranks, key=lambda rank: rank.peak.total)

    @property
    def peak_bytes(self) -> int:
        """Peak memory of the largest rank, including its share of a host-memory copy that it computes from."""
        return self.largest.peak.total + self.shared_on_device

    def fits(self, device_memory_bytes: float) -> bool:
        """Whether the peak is within `USABLE` of a device's memory."""
        return self.peak_bytes <= USABLE * device_memory_bytes


@dataclass(frozen=True)
class Choice:
    """The strategy that `auto` selects, the reason, and the estimates compared (empty if there were none)."""

    strategy: Strategy
    reason: str
    estimates: tuple[Estimate, ...]


def estimate(run: Workload, strategy: Strategy) -> Estimate:
    """Estimate `strategy`, ignoring the configuration's own `model.teacher_device_strategy`."""
    scenario = Scenario(run, strategy)
    ranks = tuple(rank_memories(scenario))
    host_copy, moved = strategy.host_bytes(run), traffic(scenario)
    on_cpu = run.device == "cpu"
    return Estimate(
        strategy=strategy,
        teacher=scenario.grid,
        ranks=ranks,
        host_copy=host_copy,
        host_bytes_per_machine=host_copy + (_fullest_machine(scenario, ranks) if on_cpu else 0),
        shared_on_device=host_copy // run.ranks_per_machine if on_cpu else 0,
        flops=flops_per_token(run),
        bubble=student_bubble(run),
        teacher_bubble=teacher_bubble(scenario),
        traffic=moved,
        seconds=_seconds(scenario, moved),
        cannot=tuple(strategy.problems(run.cfg, run.model, run.world_size)),
    )


def choose(run: Workload, device_memory_bytes: float | None) -> Choice:
    """Select the strategy for `auto`: the fastest that supports the layout and fits in memory.

    Args:
        run: a distillation without `problems`.
        device_memory_bytes: of a rank's device; None where it is unknown, and then the number of devices decides.

    Raises:
        ConfigError: no strategy supports the layout.
    """
    estimates = tuple(estimate(run, strategy) for strategy in STRATEGIES)
    able = [estimate.strategy for estimate in estimates if not estimate.cannot]
    if not able:
        raise ConfigError(why for estimate in estimates for why in estimate.cannot)
    if device_memory_bytes is None:
        counted = f"{run.world_size} devices" if run.world_size > 1 else "one device"
        strategy = next((one for one in able if one.for_unknown_memory(run.world_size)), able[0])
        return Choice(strategy, f"the device's memory is unknown, and there are {counted}", estimates)
    return _fastest(estimates, device_memory_bytes)


def _fastest(estimates: tuple[Estimate, ...], memory: float) -> Choice:
    able = [estimate for estimate in estimates if not estimate.cannot]
    fitting = [estimate for estimate in able if estimate.fits(memory)]
    limit = f"{USABLE:.0%} of {memory / 1e9:.3g} GB"
    if not fitting:
        least = min(able, key=lambda estimate: estimate.peak_bytes)
        needs = f"{least.peak_bytes / 1e9:.1f} GB"
        return Choice(least.strategy, f"none fits in {limit}; this one needs the least, {needs} per rank", estimates)
    best = min(
        fitting, key=lambda estimate: round(estimate.seconds, 9)
    )  # of equals the first, as strategies are listed
    others = [e.strategy.name for e in able if e not in fitting]
    left_out = f"; {', '.join(others)} would not fit" if others else ""
    reason = f"the fastest of those that fit in {limit} of a rank's memory{left_out}"
    return Choice(best.strategy, reason, estimates)


def _seconds(scenario: Scenario, moved: Traffic) -> float:
    """Work and traffic one after the other. Tensor parallelism stays in a machine, as does all if there is one."""
    speeds = SPEEDS[scenario.run.device]
    links = speeds.machine if scenario.run.machines == 1 else speeds.links
    seconds = busiest_rank(scenario) / speeds.operations
    seconds += moved.tensor_parallel / speeds.machine + (moved.total - moved.tensor_parallel) / links
    return seconds + moved.streamed / speeds.host


def _fullest_machine(scenario: Scenario, ranks: Sequence[RankMemory]) -> int:
    """Bytes of all ranks of the machine that needs most; `ranks` has one of each kind."""
    totals = {(m.student_stage, m.teacher_stage): m.peak.total for m in ranks}
    sums = [0] * scenario.run.machines
    for rank in range(scenario.run.world_size):
        sums[rank // scenario.run.ranks_per_machine] += totals[scenario.stages(rank)]
    return max(sums)
