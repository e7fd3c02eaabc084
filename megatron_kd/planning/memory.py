"""Memory of a rank, by part, at the moments of a step when it may be largest.

Weights, gradients and optimizer state are there throughout. A step's peak is the largest of: the teacher's forward, the
hand-over of its hidden states, the loss, the beginning of the student's backward, the embedding's gradient at its end,
and the optimizer's update. Allocator fragmentation, communicators and the CUDA context are not counted.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from megatron_kd.config.gpt_model import GPTModelProvider
from megatron_kd.placement.parameters import Parameters, shard_parameters
from megatron_kd.placement.refusals import Strategy
from megatron_kd.planning.activations import backward_extra, forward_working, layer_kept, norm_kept
from megatron_kd.planning.loss_memory import LossMemory, logits_loss, pair_kept, pair_working
from megatron_kd.planning.pairs import delivered_layers, pairs_on, stage_of
from megatron_kd.planning.setup import Setup

WEIGHTS, GRADIENTS, OPTIMIZER = "student weights", "gradients", "optimizer"
ACTIVATIONS = "student activations"
BODY, HEAD, WORKING = "teacher body", "teacher head", "teacher working set"
HANDED, LOSS = "hidden states handed over", "loss"
PARTS = (WEIGHTS, GRADIENTS, OPTIMIZER, ACTIVATIONS, BODY, HEAD, WORKING, HANDED, LOSS)
STATE = (WEIGHTS, GRADIENTS, OPTIMIZER, BODY, HEAD)
MOMENTS = ("teacher forward", "hand-over", "loss", "loss backward", "backward", "embedding gradient", "update")

_BATCH = 28  # bytes a token: tokens, labels and positions as int64, a float32 mask


@dataclass(frozen=True)
class Moment:
    """What a rank holds at one moment of a step, in bytes by part."""

    name: str
    parts: dict[str, int]

    @property
    def total(self) -> int:
        """Bytes in all."""
        return sum(self.parts.values())


@dataclass(frozen=True)
class RankMemory:
    """A rank's memory.

    Attributes:
        rank: one of the world's ranks that has this much.
        student_stage, teacher_stage: what it holds; the teacher's is None where it holds no part of the body.
        moments: of a step.
    """

    rank: int
    student_stage: int
    teacher_stage: int | None
    moments: tuple[Moment, ...]

    @cached_property
    def peak(self) -> Moment:
        """The moment with most."""
        return max(self.moments, key=lambda moment: moment.total)

    @property
    def state(self) -> int:
        """Bytes of both models, gradients and optimizer, which are there throughout."""
        return sum(self.peak.parts[name] for name in STATE)


def rank_memory(plan: Setup, strategy: Strategy, rank: int) -> RankMemory:
    """The memory of one rank. Bytes on its device; `host_copy` is beside them."""
    stage, teacher_stage = stages_of(plan, strategy, rank)
    moments = _Rank(plan, strategy, stage, teacher_stage).moments()
    return RankMemory(rank, stage, teacher_stage, tuple(moments))


def rank_memories(plan: Setup, strategy: Strategy) -> list[RankMemory]:
    """One rank for each combination of a student's and a teacher's stage that occurs."""
    found: dict[tuple[int, int | None], RankMemory] = {}
    for rank in range(plan.world_size):
        key = stages_of(plan, strategy, rank)
        if key not in found:
            found[key] = rank_memory(plan, strategy, rank)
    return list(found.values())


def stages_of(plan: Setup, strategy: Strategy, rank: int) -> tuple[int, int | None]:
    """The student's pipeline stage that a rank holds, and the teacher's; None for no part of the teacher's body."""
    stage = rank // (plan.student.tp * plan.student.dp)  # megatron-core's order: shards, copies, stages
    return stage, stage if strategy == "colocated" else plan.teacher_grid(strategy).stage(rank)


def host_copy(plan: Setup, strategy: Strategy) -> int:
    """Bytes of the teacher in a machine's host memory, outside its ranks' own."""
    if strategy != "cpu":
        return 0
    copies = 1 if plan.model.share_teacher else plan.ranks_per_machine
    return copies * body_bytes(plan, shard_parameters(plan.teacher, padded_vocab_size=plan.padded_vocab_size))


def body_bytes(plan: Setup, shard: Parameters) -> int:
    """Bytes of a part of the teacher's body; quantised matrices have a byte a weight and a float32 scale a row."""
    if plan.model.teacher_quantization is None:
        return shard.body * plan.teacher_itemsize
    others = shard.body - shard.matrix_elements
    return shard.matrix_elements + 4 * shard.matrix_rows + others * plan.teacher_itemsize


def trained_parameters(plan: Setup, stage: int) -> int:
    """The student's parameters on a rank, and the projections of its layer pairs."""
    grid = plan.student
    shard = shard_parameters(plan.model, padded_vocab_size=plan.padded_vocab_size, tp=grid.tp, pp=grid.pp, stage=stage)
    here, there = plan.model.hidden_size, plan.teacher.hidden_size
    projection = (here + 1) * there if here != there else 0
    return shard.total + projection * len(pairs_on(plan, stage))


def optimizer_bytes(plan: Setup, parameters: int) -> int:
    """State of Adam (two moments) or SGD (one, with momentum), and the float32 master weights of low precision."""
    settings = plan.cfg.optimizer
    each = 8 if settings.optimizer == "adam" else 4 if settings.sgd_momentum else 0
    each += 4 if plan.itemsize < 4 else 0
    return -(-parameters // (plan.student.dp if plan.distributed_optimizer else 1)) * each


def gradient_itemsize(plan: Setup) -> int:
    """Bytes of a gradient in the buffer that is reduced over data-parallel ranks."""
    return 4 if plan.itemsize == 4 or plan.cfg.ddp.grad_reduce_in_fp32 else plan.itemsize


class _Rank:
    """The moments of a rank on stage `stage` of the student, and `teacher_stage` of the teacher's body."""

    def __init__(self, plan: Setup, strategy: Strategy, stage: int, teacher_stage: int | None) -> None:
        self.plan, self.strategy, self.stage, self.teacher_stage = plan, strategy, stage, teacher_stage
        self.work, self.teacher_work = plan.student_work, plan.teacher_work(strategy)
        self.colocated = strategy == "colocated"
        self.last = stage == plan.student.pp - 1
        self.kept = kept_in_flight(plan, stage, colocated=self.colocated)
        self.loss = logits_loss(plan) if self.last else LossMemory(0, 0, 0)
        self.state = self._state()
        self.handed = 0 if self.colocated else self._received()

    def moments(self) -> list[Moment]:
        """All of a step."""
        kept, plan = self.kept, self.plan
        before, now = kept.others, kept.others + kept.newest
        found = [self._moment("embedding gradient", activations=before + self._embedding_gradient())]
        hidden = self._captured()
        pairs = pair_kept(plan) * len(pairs_on(plan, self.stage))
        working = pair_working(plan) if pairs else 0
        if self.colocated:
            found.append(self._moment("teacher forward", activations=before, working=self._teacher_working() + hidden))
        else:
            found += self._placed_teacher()
        teacher = hidden if self.colocated else 0
        extra = backward_extra(plan.model, self.work) + kept.recomputed
        if self.last:
            forward = max(self.loss.forward + pairs, working + pairs)
            found.append(self._moment("loss", activations=now, working=teacher, loss=forward))
            backward = self.loss.backward + pairs
            found.append(self._moment("loss backward", activations=now, working=teacher, loss=backward))
        lasting = self.loss.kept + pairs
        found.append(self._moment("backward", activations=now + extra, loss=lasting))
        found.append(self._moment("update", optimizer=self._update(), handed=0))
        return found

    def _moment(
        self,
        name: str,
        *,
        activations: int = 0,
        working: int = 0,
        loss: int = 0,
        optimizer: int = 0,
        handed: int | None = None,
    ) -> Moment:
        dynamic = {
            OPTIMIZER: self.state[OPTIMIZER] + optimizer,
            ACTIVATIONS: activations,
            WORKING: working,
            HANDED: self.handed if handed is None else handed,
            LOSS: max(loss, self.loss.lasting),
        }
        return Moment(name, {part: {**self.state, **dynamic}[part] for part in PARTS})

    def _state(self) -> dict[str, int]:
        plan = self.plan
        parameters = trained_parameters(plan, self.stage)
        return {
            WEIGHTS: parameters * plan.itemsize,
            GRADIENTS: parameters * gradient_itemsize(plan),
            OPTIMIZER: optimizer_bytes(plan, parameters),
            BODY: self._body(),
            HEAD: self._head(),
        }

    def _shard(self) -> Parameters:
        grid = self.plan.teacher_grid(self.strategy)
        width, stage = self.plan.padded_vocab_size, self.teacher_stage or 0
        return shard_parameters(self.plan.teacher, padded_vocab_size=width, tp=grid.tp, pp=grid.pp, stage=stage)

    def _body(self) -> int:
        plan = self.plan
        if self.teacher_stage is None:
            return 0
        if self.strategy == "cpu":  # on a GPU two layers at a time; on a CPU they are used where they are
            layers = min(2, plan.teacher.num_layers)
            shard = self._shard()
            each = (body_bytes(plan, shard) - shard.embedding * plan.teacher_itemsize) // plan.teacher.num_layers
            return layers * each if plan.device == "cuda" else 0
        return body_bytes(plan, self._shard())

    def _head(self) -> int:
        plan = self.plan
        if self.colocated:
            return self._shard().head * plan.teacher_itemsize
        if not self.last:
            return 0
        return plan.padded_vocab_size // plan.student.tp * plan.teacher.hidden_size * plan.teacher_itemsize

    def _teacher_working(self) -> int:
        plan, work = self.plan, self.teacher_work
        working = forward_working(plan.teacher, work)
        if plan.teacher_grid(self.strategy).pp > 1 and not self.colocated:
            working += 2 * work.hidden(plan.teacher.hidden_size)  # received and sent
        if plan.model.teacher_quantization:
            working += self._shard().largest_matrix * plan.teacher_itemsize
        return working

    def _captured(self) -> int:
        """Hidden states of a micro-batch that the losses of this stage read."""
        work = self.plan.student_work
        layers = delivered_layers(self.plan, self.stage)
        return len(layers) * work.held_tokens * self.plan.teacher.hidden_size * self.plan.teacher_itemsize

    def _received(self) -> int:
        return self._captured() * self.plan.num_microbatches

    def _placed_teacher(self) -> list[Moment]:
        """The last round of the teacher's own pass, and of the exchange of what it put out, as a step begins.

        As in `teachers/handover.py`: outgoing pieces are packed beside what was produced, which is then let go of;
        what arrives in several pieces is joined in a buffer of its own.
        """
        plan, grid = self.plan, self.plan.teacher_grid(self.strategy)
        produced = self._produced() if self.teacher_stage is not None else 0
        working = self._teacher_working() if self.teacher_stage is not None else 0
        # Where every shard of the teacher has all positions, each sends its part of them.
        sent = produced if self.teacher_work.sequence_parallel else produced // grid.tp
        in_pieces = grid.tp > 1 or plan.teacher_micro_batch_size % plan.cfg.train.micro_batch_size != 0
        share = plan.round_share(self.strategy)
        here = int(self.handed * share)  # that this rank gets in this round
        before = self.handed - here
        return [
            self._moment("teacher forward", working=working, handed=before + produced),
            self._moment("hand-over", handed=before + produced + sent),
            self._moment("hand-over", handed=before + sent + here * (2 if in_pieces else 1)),
        ]

    def _produced(self) -> int:
        """Outputs that losses elsewhere will read, of a round of this copy of the teacher."""
        plan, pp = self.plan, self.plan.teacher_grid(self.strategy).pp
        layers = set().union(*(delivered_layers(plan, stage) for stage in range(plan.student.pp)))
        here = [name for name in layers if stage_of(name, plan.teacher.num_layers, pp) == self.teacher_stage]
        forwards = plan.forwards_a_round(self.strategy)
        return len(here) * forwards * self.teacher_work.hidden(plan.teacher.hidden_size)

    def _embedding_gradient(self) -> int:
        model, work = self.plan.model, self.work
        if self.stage:
            return 0
        table = self.plan.padded_vocab_size // work.tp * model.hidden_size * work.itemsize
        tied = model.share_embeddings_and_output_weights and self.plan.student.pp == 1
        return table * (2 if tied else 1) + work.whole(model.hidden_size)

    def _update(self) -> int:
        """Gradients in float32 where the buffer is not, and the temporaries of the update."""
        plan = self.plan
        parameters = trained_parameters(plan, self.stage)
        mine = -(-parameters // (plan.student.dp if plan.distributed_optimizer else 1))
        as_float32 = 0 if gradient_itemsize(plan) == 4 else 4 * mine
        # On GPUs, torch's multi-tensor Adam makes the square roots of all second moments at once; on CPUs it is fused.
        return as_float32 + (4 * mine if plan.device == "cuda" else 0)


@dataclass(frozen=True)
class Kept:
    """Activations on a stage when its backward begins, in bytes.

    Attributes:
        others: of the micro-batches that have gone forward before the newest.
        newest: of the micro-batch whose backward begins.
        recomputed: what recomputing a block of its layers adds.
    """

    others: int
    newest: int
    recomputed: int


def in_flight(plan: Setup, stage: int) -> int:
    """Micro-batches (of one chunk each, with a virtual pipeline) that a stage holds at most, under 1F1B."""
    stages, chunks = plan.student.pp, plan.chunks
    if chunks == 1:
        return min(stages - stage, plan.num_microbatches)
    return min(2 * (stages - stage - 1) + (chunks - 1) * stages + 1, plan.num_microbatches * chunks)


def kept_in_flight(plan: Setup, stage: int, *, colocated: bool) -> Kept:
    """The student's activations on a stage."""
    model, work, stages = plan.model, plan.student_work, plan.student.pp
    layers = model.num_layers // (stages * plan.chunks)
    block, recomputed = block_kept(model, layers, plan)
    each = block
    width = model.hidden_size + (plan.teacher.hidden_size if colocated else 0)
    last = stage == stages - 1
    each += work.hidden(model.hidden_size if stages == 1 or stage == 0 else width)  # the input
    if stages > 1 and not last and colocated:
        each += work.hidden(width)  # both models' outputs, joined
    newest = each
    if last:
        newest += work.hidden(model.hidden_size) + norm_kept(model, work, work.held_tokens * model.hidden_size)
    passing = 2 * work.hidden(width) if stages > 1 else 0  # a message that has come, and a gradient
    batches = _BATCH * work.tokens * plan.num_microbatches  # all of a step
    return Kept(each * (in_flight(plan, stage) - 1) + passing + batches, newest, recomputed)


def block_kept(model: GPTModelProvider, layers: int, plan: Setup) -> tuple[int, int]:
    """What `layers` layers keep, and what recomputing adds to that at its peak."""
    work, each = plan.student_work, layer_kept(model, plan.student_work)
    if model.recompute_granularity != "full":
        return layers * each, 0
    several, state = model.recompute_num_layers or 1, work.hidden(model.hidden_size)
    if model.recompute_method == "block":
        rest = max(layers - several, 0) * each
        kept = min(several, layers) * state + rest
        return kept, max(each - rest, 0)
    return -(-layers // several) * state, min(several, layers) * each
