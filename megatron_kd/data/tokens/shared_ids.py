"""Whether an id stands for one token in two tokenizers, as a distillation that compares id by id takes for granted."""

from __future__ import annotations

from megatron_kd.config.container import ConfigContainer
from megatron_kd.config.derived import shared_vocab_size
from megatron_kd.config.problem import Problem
from megatron_kd.data.tokens.tokenizer import HuggingFaceTokenizer, Tokenizer, load_huggingface

_FIELD = "tokenizer.teacher_tokenizer_model"
_SHOWN = 3
ASSUMED = (
    "both models are taken to have one tokenizer; to have that checked, name the teacher's in "
    "tokenizer.teacher_tokenizer_model"
)


def teacher_tokenizer_problems(cfg: ConfigContainer, tokenizer: Tokenizer) -> list[Problem]:
    """Compare the teacher's tokenizer, where the configuration names one, with the student's.

    Args:
        cfg: a configuration without `problems`.
        tokenizer: the student's, loaded.

    Returns:
        one problem if they disagree, else none.

    Raises:
        InputError: the teacher's tokenizer cannot be read.
    """
    path = cfg.tokenizer.teacher_tokenizer_model
    shared = shared_vocab_size(cfg, tokenizer.vocab_size)
    if path is None or shared is None or not isinstance(tokenizer, HuggingFaceTokenizer):
        return []
    wrong = disagreements(tokenizer.tokens(), load_huggingface(path, _FIELD).tokens(), shared)
    if not wrong:
        return []
    examples = ", ".join(
        f"{token_id} is {ours!r} to the student and {theirs!r} to the teacher"
        for token_id, ours, theirs in wrong[:_SHOWN]
    )
    why = (
        f"{len(wrong)} of the {shared} ids that both models have stand for different tokens: {examples}; the models "
        "are compared id by id"
    )
    cure = "distil from a teacher of the student's tokenizer"
    return [Problem.of(cfg, f"tokenizer.tokenizer_model {_FIELD}", why, cure)]


def is_assumed(cfg: ConfigContainer) -> bool:
    """Whether the teacher's Hugging Face folder has no tokenizer to compare, so that the student's is taken for it."""
    teacher, named = cfg.models.teacher, cfg.tokenizer
    if teacher is None or teacher.hf_path is None or cfg.dataset.mock:
        return False
    return named.teacher_tokenizer_model is None and named.tokenizer_model != teacher.hf_path


def disagreements(student: dict[int, str], teacher: dict[int, str], shared_ids: int) -> list[tuple[int, str, str]]:
    """The ids below `shared_ids` that stand for another token in the other tokenizer: (id, student's, teacher's).

    An id that only one of them has does not count: heads have more rows than tokenizers have tokens, and one of
    two releases may have tokens the other has not.
    """
    both = sorted(i for i in student.keys() & teacher.keys() if i < shared_ids)
    return [(i, student[i], teacher[i]) for i in both if student[i] != teacher[i]]
