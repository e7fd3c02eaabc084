"""A loss in a step notes a fault and continues, without waiting for the device; on its own it raises."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from megatron_kd.errors import InputError, NumericalFault
from megatron_kd.losses.cross_entropy import vocab_parallel_cross_entropy
from megatron_kd.losses.faults import FAULTS, Faults, count_faults, raise_faults
from megatron_kd.losses.keywords import (
    fused_linear_divergence,
    vocab_parallel_divergence,
    vocab_parallel_topk_divergence,
)

N, V = 4, 8
LABELS = torch.tensor([0, 3, -100, 7])

Loss = Callable[[Tensor, Tensor, Tensor, Faults | None], Tensor]


def fused(student: Tensor, teacher: Tensor, labels: Tensor, faults: Faults | None) -> Tensor:
    head = torch.eye(V)
    return fused_linear_divergence(student, head, teacher, head, labels=labels, faults=faults).total


def materialised(student: Tensor, teacher: Tensor, labels: Tensor, faults: Faults | None) -> Tensor:
    divergence = vocab_parallel_divergence(student, teacher, faults=faults)
    return (divergence + vocab_parallel_cross_entropy(student, labels, faults=faults)).sum()


def topk(student: Tensor, teacher: Tensor, labels: Tensor, faults: Faults | None) -> Tensor:
    divergence = vocab_parallel_topk_divergence(student, teacher, 3, faults=faults).divergence
    return (divergence + vocab_parallel_cross_entropy(student, labels, faults=faults)).sum()


def inputs(wrong: str) -> tuple[Tensor, Tensor, Tensor]:
    student, teacher = (torch.randn(N, V, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
    labels = LABELS.clone()
    if wrong == "label":
        labels[1] = V
    elif wrong in ("student", "teacher"):
        {"student": student, "teacher": teacher}[wrong][2, 5] = torch.nan
    return student.requires_grad_(), teacher, labels


def met(faults: Faults) -> set[str]:
    counts = count_faults([faults], torch.device("cpu"))
    return {fault for fault, count in zip(FAULTS, counts.tolist(), strict=True) if count}


@pytest.mark.parametrize("loss", [fused, materialised, topk])
@pytest.mark.parametrize("wrong", ["nothing", "student", "teacher", "label"])
def test_a_fault_is_noted_and_the_loss_goes_on(loss: Loss, wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    faults = Faults()
    student, teacher, labels = inputs(wrong)
    with monkeypatch.context() as patch:
        for wait in ("tolist", "item", "__bool__", "__float__", "__int__"):
            patch.setattr(torch.Tensor, wait, _waited)
        loss(student, teacher, labels, faults).backward()
    found = met(faults)
    assert found - {"divergence"} == ({wrong} if wrong != "nothing" else set())
    assert faults.any() == (wrong != "nothing")


def test_faults_are_counted_over_micro_batches() -> None:
    several = [Faults(), Faults(), Faults()]
    for faults, (student, label) in zip(several, [(True, False), (True, True), (False, False)], strict=True):
        faults.note([(torch.tensor(student), "student"), (torch.tensor(label), "label")])
    counts = count_faults(several, torch.device("cpu"))
    assert dict(zip(FAULTS, counts.tolist(), strict=True)) == {"student": 1, "teacher": 0, "divergence": 0, "label": 2}
    assert [faults.any() for faults in several] == [True, False, True]


def _waited(*_: object) -> None:
    raise AssertionError("the device was waited for")


@pytest.mark.parametrize("loss", [fused, materialised, topk])
@pytest.mark.parametrize(
    ("wrong", "error", "text"),
    [
        ("student", NumericalFault, "the student logits are not finite"),
        ("teacher", NumericalFault, "the teacher logits are not finite"),
        ("label", InputError, "a label is outside"),
    ],
)
def test_without_faults_it_raises(loss: Loss, wrong: str, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=f"^{text}"):
        loss(*inputs(wrong), None)


def test_a_single_logit_of_minus_infinity_is_a_fault_of_the_divergence() -> None:
    student, teacher, _ = inputs("nothing")
    with torch.no_grad():
        student[1, 1] = -torch.inf
    with pytest.raises(NumericalFault, match=r"the divergence is not finite.*-inf"):
        vocab_parallel_divergence(student, teacher)


def test_what_is_said_of_several_faults() -> None:
    raise_faults([], "step 3: ")
    with pytest.raises(
        NumericalFault, match=r"^step 3: the student logits are not finite.*; the teacher logits are"
    ) as raised:
        raise_faults(["label", "divergence", "teacher", "student"], "step 3: ", [5, 6])
    assert raised.value.sample_ids == [5, 6]
    with pytest.raises(NumericalFault, match=r"^the divergence"):
        raise_faults(["label", "divergence"])
