"""Everything a plan says of one strategy, and which strategy `auto` takes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from megatron_kd.config.container import ConfigContainer
from megatron_kd.errors import ConfigError
from megatron_kd.placement.grid import TeacherGrid
from megatron_kd.placement.refusals import STRATEGIES, Strategy, strategy_problems
from megatron_kd.planning.flops import Flops, busiest_rank, flops_per_token, pipeline_bubble, teacher_bubble
from megatron_kd.planning.memory import RankMemory, host_copy, rank_memories, stages_of
from megatron_kd.planning.setup import Device, Setup, setup
from megatron_kd.planning.traffic import Traffic, traffic

# Of a device's memory, what a plan may fill: the rest is for the allocator's gaps, communicators, the CUDA context
# and the error of the estimate.
USABLE = 0.9


@dataclass(frozen=True)
class Speeds:
    """Round numbers to compare strategies with, not to predict times.

    Attributes:
        operations: of a rank, a second.
        machine, links, host: bytes a second of a rank, within a machine, between machines, and from host memory.
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
        strategy: its name.
        teacher: the layout of the teacher's body.
        ranks: memory of one rank of each kind.
        host_copy: bytes of the teacher in a machine's host memory, outside its ranks' own.
        host_bytes_per_machine: bytes of a machine's host memory in all.
        shared_on_device: a rank's part of `host_copy`, where ranks compute in host memory.
        flops: of a token.
        bubble, teacher_bubble: shares of the student's and the teacher's pass that stages wait for each other.
        traffic: of a step.
        seconds: a rough time of a step, to compare with.
        cannot: why this layout cannot be served; empty if it can.
    """

    strategy: Strategy
    teacher: TeacherGrid
    ranks: tuple[RankMemory, ...]
    host_copy: int
    host_bytes_per_machine: int
    shared_on_device: int
    flops: Flops
    bubble: float
    teacher_bubble: float
    traffic: Traffic
    seconds: float
    cannot: tuple[str, ...]

    @cached_property
    def largest(self) -> RankMemory:
        """The rank that needs most."""
        return max(self.ranks, key=lambda rank: rank.peak.total)

    @property
    def peak_bytes(self) -> int:
        """What the largest rank needs, with its part of a copy that it computes from in host memory."""
        return self.largest.peak.total + self.shared_on_device

    def fits(self, device_memory_bytes: float) -> bool:
        """Whether that is in `USABLE` of a device's memory."""
        return self.peak_bytes <= USABLE * device_memory_bytes


@dataclass(frozen=True)
class Choice:
    """What `auto` takes, why, and the estimates it was chosen from (none where nothing could be estimated)."""

    strategy: Strategy
    reason: str
    estimates: tuple[Estimate, ...]


def estimate(
    cfg: ConfigContainer,
    world_size: int,
    strategy: Strategy,
    *,
    ranks_per_machine: int | None = None,
    device: Device = "cuda",
) -> Estimate:
    """What `strategy` needs on `world_size` ranks.

    Args:
        cfg: a distillation without `problems`; its own `model.teacher_device_strategy` is not read.
        world_size: number of ranks.
        strategy: where the teacher is to be.
        ranks_per_machine: ranks that share a host; None: 8, or all if they are fewer.
        device: what ranks compute on.

    Raises:
        InputError: there is no teacher, or the vocabulary's size is unknown.
    """
    return estimate_of(setup(cfg, world_size, ranks_per_machine=ranks_per_machine, device=device), strategy)


def estimate_of(plan: Setup, strategy: Strategy) -> Estimate:
    """The same, of resolved values."""
    cannot = tuple(strategy_problems(plan.cfg, strategy, plan.world_size))
    ranks = tuple(rank_memories(plan, strategy))
    copy = host_copy(plan, strategy)
    moved = traffic(plan, strategy)
    on_cpu = plan.device == "cpu"
    return Estimate(
        strategy=strategy,
        teacher=plan.teacher_grid(strategy),
        ranks=ranks,
        host_copy=copy,
        host_bytes_per_machine=copy + (_fullest_machine(plan, strategy) if on_cpu else 0),
        shared_on_device=copy // plan.ranks_per_machine if on_cpu else 0,
        flops=flops_per_token(plan),
        bubble=pipeline_bubble(plan.student.pp, plan.chunks, plan.num_microbatches),
        teacher_bubble=teacher_bubble(plan, strategy),
        traffic=moved,
        seconds=_seconds(plan, strategy, moved),
        cannot=cannot,
    )


def choose(
    cfg: ConfigContainer,
    world_size: int,
    device_memory_bytes: float | None,
    *,
    ranks_per_machine: int | None = None,
    device: Device = "cuda",
) -> Choice:
    """What `auto` takes: of the strategies that can serve the layout and fit, the fastest.

    Args:
        cfg, world_size, ranks_per_machine, device: see `estimate`.
        device_memory_bytes: of a rank's device; None where it is unknown, and then the number of devices decides.

    Raises:
        InputError: see `estimate`; or no strategy can serve the layout.
    """
    plan = setup(cfg, world_size, ranks_per_machine=ranks_per_machine, device=device)
    estimates = tuple(estimate_of(plan, strategy) for strategy in STRATEGIES)
    able = [estimate.strategy for estimate in estimates if not estimate.cannot]
    if not able:
        raise ConfigError(list(dict.fromkeys(why for estimate in estimates for why in estimate.cannot)))
    if device_memory_bytes is None:
        wanted: Strategy = "balanced" if world_size > 1 else "cpu"
        counted = f"{world_size} devices" if world_size > 1 else "one device"
        strategy = wanted if wanted in able else able[0]
        return Choice(strategy, f"the device's memory is unknown, and there are {counted}", estimates)
    return _fastest(estimates, device_memory_bytes)


def _fastest(estimates: tuple[Estimate, ...], memory: float) -> Choice:
    able = [estimate for estimate in estimates if not estimate.cannot]
    fitting = [estimate for estimate in able if estimate.fits(memory)]
    limit = f"{USABLE:.0%} of {memory / 1e9:.3g} GB"
    if not fitting:
        least = min(able, key=lambda estimate: estimate.peak_bytes)
        needs = f"{least.peak_bytes / 1e9:.1f} GB"
        return Choice(least.strategy, f"none fits in {limit}; this one needs least, {needs} a rank", estimates)
    # On equal times the order of STRATEGIES decides: fewer things that have to work together come first.
    best = min(fitting, key=lambda estimate: (round(estimate.seconds, 9), STRATEGIES.index(estimate.strategy)))
    others = [e.strategy for e in able if e not in fitting]
    left_out = f"; {', '.join(others)} would not fit" if others else ""
    reason = f"the fastest of those that fit in {limit} of a rank's memory{left_out}"
    return Choice(best.strategy, reason, estimates)


def _seconds(plan: Setup, strategy: Strategy, moved: Traffic) -> float:
    """Work and traffic one after the other. Tensor parallelism stays in a machine, as does all if there is one."""
    speeds = SPEEDS[plan.device]
    links = speeds.machine if plan.machines == 1 else speeds.links
    seconds = busiest_rank(plan, strategy) / speeds.operations
    seconds += moved.tensor_parallel / speeds.machine + (moved.total - moved.tensor_parallel) / links
    return seconds + moved.streamed / speeds.host


def _fullest_machine(plan: Setup, strategy: Strategy) -> int:
    """Bytes of all ranks of the machine that needs most."""
    totals = {(m.student_stage, m.teacher_stage): m.peak.total for m in rank_memories(plan, strategy)}
    sums = [0] * plan.machines
    for rank in range(plan.world_size):
        sums[rank // plan.ranks_per_machine] += totals[stages_of(plan, strategy, rank)]
    return max(sums)
