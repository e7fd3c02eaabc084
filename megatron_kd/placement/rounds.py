"""In how many rounds a step's hidden states are made and handed over. Pure arithmetic, of the plan's as of the run's.

All in one round, the teacher's last stage would hold a whole global batch of hidden states before it sends them.
"""

from __future__ import annotations

# Forward passes per round for each stage of the teacher: a pipeline is idle for (stages - 1) of them.
FORWARDS_A_STAGE = 8


def micro_batches_a_round(
    num_microbatches: int, sequences: int, teacher_copies: int, teacher_micro_batch_size: int, teacher_stages: int
) -> int:
    """The student's micro-batches of one round: as few as keep the teacher's pipeline busy.

    Args:
        num_microbatches: of a data-parallel rank of the student and step.
        sequences: of one of them, over all data-parallel ranks.
        teacher_copies: which they are divided among.
        teacher_micro_batch_size: in sequences.
        teacher_stages: pipeline stages of the teacher.
    """
    forwards = FORWARDS_A_STAGE * teacher_stages if teacher_stages > 1 else 1
    wanted = forwards * teacher_micro_batch_size * teacher_copies
    return min(num_microbatches, -(-wanted // sequences))
