"""Bytes that the losses need on a rank of the last stage, and those of layer pairs on any stage."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_kd.config.kd_config import why_materialised
from megatron_kd.losses.kinds import TEMPORARIES
from megatron_kd.losses.sizes import BLOCK_BYTES, chunk_rows, tile_bytes, tile_rows
from megatron_kd.placement.workload import Workload
from megatron_kd.planning.activations import Work, student_work

_TOKEN_STATISTICS = 120  # bytes per token: float64 sums, factors and labels


@dataclass(frozen=True)
class LossMemory:
    """Bytes by moment.

    Attributes:
        forward: the most that the loss's forward holds.
        backward: the most that its backward holds before the student's layers' begins.
        kept: what it leaves alive throughout the student's backward.
        lasting: what is never freed, a part of the others: the buffer in which the head's gradient is formed.
    """

    forward: int
    backward: int
    kept: int
    lasting: int = 0


def logits_loss(run: Workload) -> LossMemory:
    """The logit loss of one micro-batch, with its language-modelling loss."""
    work = student_work(run)
    return _materialised(run, work) if why_materialised(run.model.kd_config) else _fused(run, work)


def pair_kept(run: Workload) -> int:
    """Bytes that the loss of one layer pair saves for its backward, beyond both models' hidden states."""
    work, width = student_work(run), run.teacher.hidden_size
    elements = work.held_tokens * width
    kept = 4 * elements * (1 if work.itemsize == 4 else 2)  # the normalised teacher, and the student as float32
    if run.model.hidden_size != width:
        kept += elements * work.itemsize  # projected
    return kept


def pair_working(run: Workload) -> int:
    """Temporary memory of the loss of one layer pair: three float32 copies."""
    return 3 * 4 * student_work(run).held_tokens * run.teacher.hidden_size


def _fused(run: Workload, work: Work) -> LossMemory:
    width = run.padded_vocab_size // work.tp
    hidden, teacher = run.model.hidden_size, run.teacher.hidden_size
    matrix, tokens = width * hidden, work.tokens
    gathered = tokens * (hidden * work.itemsize + teacher * run.teacher_itemsize) if work.sequence_parallel else 0
    own_gradients = 4 * matrix + work.whole(hidden)  # the head's, in float32, and the hidden states'
    statistics = _TOKEN_STATISTICS * tokens
    forward = own_gradients + gathered + statistics + _chunks(run, work, width)
    # The head's gradient is added to the buffer; autograd is handed a dummy of the weight's type.
    dummy = matrix * work.itemsize
    backward = own_gradients + dummy + work.whole(hidden)
    tied = run.model.share_embeddings_and_output_weights and run.student.pp == 1
    lasting = 4 * matrix
    return LossMemory(forward, backward, lasting + work.hidden(hidden) + (dummy if tied else 0), lasting)


def _chunks(run: Workload, work: Work, width: int) -> int:
    """Logits of a chunk of both models, and what is larger: the buffers of a tile, or those of the matrix products."""
    chunk = min(chunk_rows(width, work.device), work.tokens)
    tile = min(chunk, tile_rows(width, work.device))
    on_cpu = work.device == "cpu"
    item = 4 if on_cpu else work.itemsize
    logits = chunk * width * (item + (4 if on_cpu else run.teacher_itemsize))
    # Exponentials, the LM loss's logits, a copy of logits that are not float32 themselves, and temporaries.
    copies = 0 if on_cpu else (work.itemsize < 4) + (run.teacher_itemsize < 4)
    kd = run.model.kd_config
    buffers = 4 * tile * width * ((1 if kd.skip_lm_loss else 2) + copies + TEMPORARIES[kd.logits_loss_kind])
    # The student's hidden states of the chunk.
    cast = 4 * chunk * run.model.hidden_size if on_cpu and work.itemsize < 4 else 0
    return logits + cast + max(buffers, _products(run, work, width, chunk))


def _products(run: Workload, work: Work, width: int, chunk: int) -> int:
    """Extra memory for low precision: to cast the heads on a CPU, to accumulate the head's gradient on a GPU."""
    hidden, teacher = run.model.hidden_size, run.teacher.hidden_size
    if work.device != "cpu":
        return width * hidden * work.itemsize if work.itemsize < 4 else 0
    needs = [0]
    for size, itemsize in ((hidden, work.itemsize), (teacher, run.teacher_itemsize)):
        if itemsize < 4:  # a block of the head, and the hidden states of the chunk or their gradient
            needs.append(min(BLOCK_BYTES, 4 * width * size) + 4 * chunk * size)
    return max(needs)


def _materialised(run: Workload, work: Work) -> LossMemory:
    """Both models' logits, and in the backward the gradient of the student's, or one for each loss in training."""
    width, kd = run.padded_vocab_size // work.tp, run.model.kd_config
    student, teacher = work.whole(width), work.tokens * width * run.teacher_itemsize
    tile_buffers = 3 + TEMPORARIES[kd.logits_loss_kind]
    working = tile_buffers * max(tile_bytes(work.device), 4 * width) + _TOKEN_STATISTICS * work.tokens
    held = student if kd.logit_kl_topk else student + teacher  # the teacher's top k have been picked by then
    gradients = student * (1 if kd.skip_lm_loss else 2)
    return LossMemory(student + teacher + working, held + gradients + working, kept=0)
