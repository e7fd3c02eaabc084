"""The losses by name: which there are, what each divergence reads, and which values are legal.

Torch-free, because configurations and estimates read it too. To add a divergence: its name and its temporaries here,
its value and gradient in `closed_forms`. If it has a parameter of its own: a field of `Divergence` and an entry of
`PARAMETERS` here, and the field `logits_loss_<name>` of `ModelOptDistillConfig`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

from megatron_kd.errors import InputError

DivergenceKind = Literal["forward_kl", "reverse_kl", "jsd", "skewed_forward_kl", "skewed_reverse_kl", "total_variation"]
KINDS: tuple[DivergenceKind, ...] = get_args(DivergenceKind)

TEMPORARIES: dict[DivergenceKind, int] = {
    "forward_kl": 0,
    "reverse_kl": 0,
    "jsd": 3,
    "skewed_forward_kl": 3,
    "skewed_reverse_kl": 3,
    "total_variation": 2,
}
"""Tensors of a tile's size that the closed form of a kind allocates for a moment, beside the buffers of the tile."""


class Parameter(NamedTuple):
    """A number that only some kinds read: which ones, and its legal values, as a test and in words."""

    kinds: tuple[DivergenceKind, ...]
    holds: Callable[[float], bool]
    words: str


PARAMETERS: dict[str, Parameter] = {
    "beta": Parameter(("jsd",), lambda v: 0 <= v <= 1, "must be at least 0 and at most 1"),
    # At alpha = 1 both sides of a skewed KL are one distribution, and the loss is always 0.
    "alpha": Parameter(
        ("skewed_forward_kl", "skewed_reverse_kl"), lambda v: 0 <= v < 1, "must be at least 0 and less than 1"
    ),
}


@dataclass(frozen=True, kw_only=True)
class Divergence:
    """A divergence of the student's next-token distribution Q from the teacher's P, both softmaxes at temperature T.

    Attributes:
        kind: one of `KINDS`; the formulas and their papers are in `closed_forms`.
        temperature: T; the logits of both models are divided by it.
        temperature_squared: whether the divergence is multiplied by T^2, so that its gradient keeps its size as T
            grows (Hinton et al. 2015).
        beta: weight of the teacher in "jsd". 0 means the forward KL and 1 the reverse KL: the convention of GKD's
            authors and of TRL (JSD(beta) itself goes to 0 there; JSD(beta) / beta goes to the forward KL).
        alpha: skew of the skewed KLs; 0 means the KL.

    Raises:
        InputError: an unknown kind, a temperature that is not positive, or an illegal parameter that `kind` reads.
    """

    kind: DivergenceKind = "forward_kl"
    temperature: float = 1.0
    temperature_squared: bool = False
    beta: float = 0.5
    alpha: float = 0.1

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InputError(f"kind={self.kind!r} is not a divergence; the divergences are {', '.join(KINDS)}")
        if not self.temperature > 0:
            raise InputError(f"temperature={self.temperature} must be greater than 0")
        for name, parameter in PARAMETERS.items():
            value = getattr(self, name)
            if self.kind in parameter.kinds and not parameter.holds(value):
                raise InputError(f"{name}={value} of kind={self.kind!r} {parameter.words}")

    @property
    def inv_temperature(self) -> float:
        """1 / T."""
        return 1 / self.temperature

    @property
    def scale(self) -> float:
        """The factor of the divergence: T^2 or 1."""
        return self.temperature**2 if self.temperature_squared else 1.0


Tail = Literal["bucket", "renormalise", "ignore"]
TAILS: tuple[Tail, ...] = get_args(Tail)

HIDDEN_KINDS = ("cosine", "mse", "smooth_l1")
"""The losses between hidden states, which `hidden.HIDDEN_LOSSES` holds."""


@dataclass(frozen=True)
class Truncation:
    """The tokens that a top-k loss compares, and its treatment of the others.

    Attributes:
        k: number of tokens, by the teacher's probability.
        tail: treatment of the other tokens, one of `TAILS`: see `topk.topk_divergence`.

    Raises:
        InputError: an unknown tail. k is checked against the vocabulary where the logits are.
    """

    k: int
    tail: Tail = "bucket"

    def __post_init__(self) -> None:
        if self.tail not in TAILS:
            raise InputError(f"tail={self.tail!r} is not one of {', '.join(TAILS)}")
