"""The error tree: every error crosses process boundaries as itself."""

from __future__ import annotations

import pickle

import pytest

from megatron_kd import errors
from megatron_kd.config.problem import Problem, Setting
from megatron_kd.errors import ConfigError, LostRank, MegatronKDError, NumericalFault
from megatron_kd.losses.fused_linear import DetachedLossUsed

PROBLEM = Problem((Setting("a.b", "3", "my.yaml:7"),), "must be 4", "set a.b=4")
MADE_OF = {ConfigError: ([PROBLEM, "a line"],), NumericalFault: ("x", [7, 8]), LostRank: (1, "hand-over", "a\nb")}


def subclasses(of: type[MegatronKDError]) -> list[type[MegatronKDError]]:
    """The class and all below it."""
    return [of, *(found for below in of.__subclasses__() for found in subclasses(below))]


@pytest.mark.parametrize("kind", subclasses(MegatronKDError), ids=lambda kind: kind.__name__)
def test_errors_unpickle_to_themselves(kind: type[MegatronKDError]) -> None:
    error = kind(*MADE_OF.get(kind, ("what is wrong",)))
    error.add_note("of rank 1")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind and str(again) == str(error) and vars(again) == vars(error)
    assert (again.args, again.exit_code, again.__notes__) == (error.args, kind.exit_code, ["of rank 1"])
    assert pickle.dumps(again) == pickle.dumps(error)


def test_all_errors_are_tried() -> None:
    here = {item for item in vars(errors).values() if isinstance(item, type) and issubclass(item, MegatronKDError)}
    assert here | {DetachedLossUsed} <= set(subclasses(MegatronKDError))
