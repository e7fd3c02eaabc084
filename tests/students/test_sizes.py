"""The sizes a teacher can be pruned to, and the messages about other sizes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from megatron_kd.config.gpt_model import GPTModelProvider, explicit
from megatron_kd.resolve.recipe_files import load_recipe
from megatron_kd.students.pruned_sizes import Sizes, choices, pruned_architecture, size_problems
from tools.prune_demo import SIZES

TEACHER = GPTModelProvider(
    num_layers=12, hidden_size=4096, ffn_hidden_size=14336, num_attention_heads=32, num_query_groups=8, vocab_size=1000
)


def test_a_pruned_models_heads_keep_their_width() -> None:
    sizes = Sizes(num_layers=6, hidden_size=3072, ffn_hidden_size=9216, num_attention_heads=24, num_query_groups=8)
    assert not list(size_problems(TEACHER, sizes))
    assert pruned_architecture(TEACHER, sizes) == replace(
        TEACHER, num_layers=6, hidden_size=3072, ffn_hidden_size=9216, num_attention_heads=24, kv_channels=128
    )


def test_what_follows_from_the_hidden_size_is_said_before_it_changes() -> None:
    plain = GPTModelProvider(num_layers=2, hidden_size=128, num_attention_heads=4)
    student = pruned_architecture(plain, Sizes(hidden_size=64 * 2, num_layers=1))
    assert (student.ffn_hidden_size, student.kv_channels, student.num_query_groups) == (512, 32, 4)
    assert explicit(student) == student


def test_hidden_sizes_stay_as_aligned_as_the_teachers() -> None:
    assert choices(TEACHER, "hidden_size")[:2] == range(128, 384, 128)
    assert list(choices(replace(TEACHER, hidden_size=192), "hidden_size")) == [64, 128, 192]
    assert list(choices(TEACHER, "num_attention_heads")) == [8, 16, 24, 32]
    assert list(choices(TEACHER, "num_query_groups")) == [8]


def test_every_size_that_cannot_be_is_told_with_what_can() -> None:
    wrong = Sizes(num_layers=0, hidden_size=5000, ffn_hidden_size=1000, num_attention_heads=12, num_query_groups=4)
    assert list(size_problems(TEACHER, wrong)) == [
        "--num-layers 0: must be 1 or more; possible: 1 to 12",
        "--hidden-size 5000: the teacher has 4096, and pruning makes nothing larger; possible: 128, 256, ... 4096, "
        "multiples of 128",
        "--ffn-hidden-size 1000: must be a multiple of 128, which the teacher's 14336 is too; possible: 128, 256, ... "
        "14336, multiples of 128",
        "--num-attention-heads 12: heads must be a multiple of the teacher's 8 query groups; possible: 8, 16, 24, 32",
        "--num-query-groups 4: query groups are not pruned, since their heads share keys and values, and the teacher "
        "has 8; possible: 8",
    ]


@pytest.mark.parametrize("sizes", [Sizes(), Sizes(num_layers=12, num_query_groups=8)])
def test_pruning_nothing_is_refused(sizes: Sizes) -> None:
    (problem,) = size_problems(TEACHER, sizes)
    assert problem.startswith("nothing is to be pruned: give a smaller size by one or more of --num-layers, --hidden")


def test_the_tiny_recipes_student_is_what_the_demo_prunes_to() -> None:
    folder = Path(__file__).resolve().parents[2] / "recipes/tiny"
    student, teacher = (load_recipe(folder / name)().model for name in ("pretrain_pruned_tiny.py", "pretrain_tiny.py"))
    words = zip(SIZES[::2], SIZES[1::2], strict=True)
    given = {name.removeprefix("--").replace("-", "_"): int(value) for name, value in words}
    teacher = replace(teacher, init=None)
    assert explicit(student) == pruned_architecture(teacher, Sizes(**given))
