"""The student's bytes on a rank: what training keeps throughout, and its activations."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_kd.placement.parameters import shard_parameters
from megatron_kd.placement.workload import Workload
from megatron_kd.planning.activations import layer_kept, norm_kept, student_work

_BATCH = 28  # bytes per token: tokens, labels and positions as int64, a float32 mask


def trained_parameters(run: Workload, stage: int) -> int:
    """The student's parameters on a rank, and the projections of its layer pairs."""
    grid = run.student
    shard = shard_parameters(run.model, padded_vocab_size=run.padded_vocab_size, tp=grid.tp, pp=grid.pp, stage=stage)
    here, there = run.model.hidden_size, run.teacher.hidden_size
    projection = (here + 1) * there if here != there else 0
    return shard.total + projection * run.pairs_on(stage)


def optimizer_bytes(run: Workload, parameters: int) -> int:
    """State of Adam (two moments) or SGD (one, with momentum), and the float32 master weights of low precision."""
    settings = run.cfg.optimizer
    each = 8 if settings.optimizer == "adam" else 4 if settings.sgd_momentum else 0
    each += 4 if run.itemsize < 4 else 0
    return _updated_here(run, parameters) * each


def gradient_itemsize(run: Workload) -> int:
    """Bytes of a gradient in the buffer that is reduced over data-parallel ranks."""
    return 4 if run.itemsize == 4 or run.cfg.ddp.grad_reduce_in_fp32 else run.itemsize


def update_bytes(run: Workload, parameters: int) -> int:
    """Temporary memory of an update: float32 copies of gradients in lower precision, and the optimizer's own.

    On GPUs, torch's multi-tensor Adam computes the square roots of all second moments at once; on CPUs it is fused.
    """
    mine = _updated_here(run, parameters)
    as_float32 = 0 if gradient_itemsize(run) == 4 else 4 * mine
    return as_float32 + (4 * mine if run.device == "cuda" else 0)


def embedding_gradient(run: Workload, stage: int) -> int:
    """Bytes of the embedding's gradient, in the weights' precision; its backward is the last of a micro-batch."""
    if stage:
        return 0
    model, work = run.model, student_work(run)
    table = run.padded_vocab_size // work.tp * model.hidden_size * work.itemsize
    tied = model.share_embeddings_and_output_weights and run.student.pp == 1
    return table * (2 if tied else 1) + work.whole(model.hidden_size)


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


def in_flight(run: Workload, stage: int) -> int:
    """Micro-batches (of one chunk each, with a virtual pipeline) that a stage holds at most, under 1F1B."""
    stages, chunks = run.student.pp, run.chunks
    if chunks == 1:
        return min(stages - stage, run.num_microbatches)
    return min(2 * (stages - stage - 1) + (chunks - 1) * stages + 1, run.num_microbatches * chunks)


def kept_in_flight(run: Workload, stage: int, *, with_teacher: bool) -> Kept:
    """The student's activations on a stage; `with_teacher`: the teacher's hidden states travel with the student's."""
    model, work, stages = run.model, student_work(run), run.student.pp
    block, recomputed = block_kept(run)
    width = model.hidden_size + (run.teacher.hidden_size if with_teacher else 0)
    last = stage == stages - 1
    each = block + work.hidden(width if stage else model.hidden_size)  # with its input
    if with_teacher and not last:
        each += work.hidden(width)  # both models' outputs, joined
    newest = each
    if last:
        newest += work.hidden(model.hidden_size) + norm_kept(model, work, work.held_tokens * model.hidden_size)
    passing = 2 * work.hidden(width) if stages > 1 else 0  # a message that has come, and a gradient
    batches = _BATCH * work.tokens * run.num_microbatches  # all of a step
    return Kept(each * (in_flight(run, stage) - 1) + passing + batches, newest, recomputed)


def block_kept(run: Workload) -> tuple[int, int]:
    """Bytes that the layers of a chunk save for backward, and the peak that recomputation adds."""
    model, work = run.model, student_work(run)
    layers, each = model.num_layers // (run.student.pp * run.chunks), layer_kept(model, work)
    if model.recompute_granularity != "full":
        return layers * each, 0
    several, state = model.recompute_num_layers or 1, work.hidden(model.hidden_size)
    if model.recompute_method == "block":
        rest = max(layers - several, 0) * each
        return min(several, layers) * state + rest, max(each - rest, 0)
    return -(-layers // several) * state, min(several, layers) * each


def _updated_here(run: Workload, parameters: int) -> int:
    """Those of a rank's parameters that it updates itself: with the distributed optimizer, its share."""
    return -(-parameters // (run.student.dp if run.cfg.ddp.use_distributed_optimizer else 1))
