"""A whole distillation step against formulas written by hand in float64, and against ModelOpt's own step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from megatron_kd.config.container import ConfigContainer
from megatron_kd.models.micro_batch import MicroBatch
from tests.distillation.passes import forward_backward
from tests.ranks import run_ranks
from tests.tiny import VOCAB, tiny_config

GRADIENTS = ("decoder.final_layernorm.weight", "output_layer.weight", "embedding.word_embeddings.weight")


def one_step(cfg: ConfigContainer, *, masked: int = 0) -> dict[str, Any]:
    """On a rank: forward and backward of the first global batch; losses and gradients, and what made them.

    Args:
        masked: number of leading tokens of each sequence that do not count.
    """
    from megatron_kd.config.derived import derived
    from megatron_kd.data.tokens.tokenizer import load_tokenizer
    from megatron_kd.runtime.start import running_ranks
    from megatron_kd.training.forward_pass import forward_batch, means_of
    from megatron_kd.training.run_data import RunData
    from megatron_kd.training.run_state import build_run

    model = cfg.model
    with running_ranks(
        tensor_model_parallel_size=model.tensor_model_parallel_size,
        pipeline_model_parallel_size=model.pipeline_model_parallel_size,
        seed=cfg.rng.seed,
    ) as layout:
        values = derived(cfg, layout.world_size)
        run = build_run(cfg, values, layout)
        batches = list(_first(RunData(cfg, values, layout, load_tokenizer(cfg.tokenizer)).training(0), values))
        for batch in batches:
            batch.loss_mask[:, :masked] = 0.0
        hidden = _hidden_states(run, batches)
        run.chunks[0].zero_grad_buffer()
        means, tokens = means_of(forward_backward(run, batches))
        with torch.no_grad():
            run.chunks[0].eval()
            evaluated, _ = means_of(forward_batch(run, iter(batches)).sums)
        gradients = {n: p.main_grad.clone() for n, p in run.students[0].named_parameters() if p.requires_grad}
        shards = {"student": _head(run.students[0]), "teacher": _head(run.teacher.model)}
        return {"means": means, "tokens": tokens, "evaluated": evaluated, "grads": gradients,
                "heads": shards, "hidden": hidden, "mask": torch.cat([b.loss_mask for b in batches]),
                "labels": torch.cat([b.labels for b in batches])}  # fmt: skip


def _first(batches: Any, values: Any) -> Any:
    return (next(batches) for _ in range(values.num_microbatches))


def _head(model: Any) -> Tensor:
    return model.output_layer.weight.detach().clone()


def _hidden_states(run: Any, batches: list[MicroBatch]) -> dict[str, Tensor]:
    """Both models' final hidden states over the batch, [S, N, H], by hooks of this test."""
    from megatron_kd.distillation.report import StepSums

    seen: dict[str, list[Tensor]] = {"student": [], "teacher": []}
    hooks = [
        model.decoder.final_layernorm.register_forward_hook(
            lambda m, i, out, name=name: seen[name].append(out.detach())
        )
        for name, model in (("student", run.students[0]), ("teacher", run.teacher.model))
    ]
    with torch.no_grad():
        run.chunks[0].eval()
        for batch in batches:
            (targets,) = run.teacher.deliver([batch])
            with run.objective.forward(batch, targets, StepSums(run.layout.device)):
                run.chunks[0](batch.tokens, batch.position_ids, None)
        run.chunks[0].train()
    for hook in hooks:
        hook.remove()
    return {name: torch.cat(outputs, dim=1) for name, outputs in seen.items()}


def formulas(
    step: dict[str, Any],
    projection: tuple[Tensor, Tensor] | None,
    temperature: float,
    student_ids: int = VOCAB,
    teacher_ids: int = VOCAB,
    topk: int | None = None,
) -> dict[str, Any]:
    """Means of the losses in float64 from hidden states and heads, and the gradient of the student's head.

    The divergence is over the ids that both models have, the LM loss over all of the student's. With `topk` the
    divergence is over the teacher's top-k tokens and one bucket with the others.
    """
    shared = min(student_ids, teacher_ids)
    mask = step["mask"].double().T
    student_hidden, teacher_hidden = (step["hidden"][name].double() for name in ("student", "teacher"))
    head = step["heads"]["student"].double()[:student_ids].requires_grad_()
    student_logits = student_hidden @ head.T
    teacher_logits = teacher_hidden @ step["heads"]["teacher"].double()[:shared].T
    log_p, log_q = ((x / temperature).log_softmax(-1) for x in (teacher_logits, student_logits[..., :shared]))
    choice = log_p.argmax(-1, keepdim=True)
    rank = (log_q > log_q.gather(-1, choice)).sum(-1)
    kl = _kl(teacher_logits.log_softmax(-1), student_logits[..., :shared].log_softmax(-1))
    if topk is not None:
        ids = log_p.topk(topk).indices
        log_p, log_q = (_with_bucket(log.exp().gather(-1, ids)).log() for log in (log_p, log_q))
    divergence = _kl(log_p, log_q)
    lm = -student_logits.log_softmax(-1).gather(-1, step["labels"].T.unsqueeze(-1)).squeeze(-1)
    projected = student_hidden
    if projection is not None:
        projected = student_hidden @ projection[0].double().T + projection[1].double()
    norms = projected.norm(dim=-1) * teacher_hidden.norm(dim=-1)
    cosine = 1 - (projected * teacher_hidden).sum(-1) / norms
    tokens = mask.sum()
    (gradient,) = torch.autograd.grad((divergence * mask).sum() / tokens, head)
    losses = {
        "logits_loss": divergence,
        "intermediate_loss": cosine,
        "lm_loss": lm,
        "teacher_kl": kl,
        "teacher_top1_agreement": rank < 1,
        "teacher_top5_agreement": rank < 5,
    }
    means = {name: ((loss * mask).sum() / tokens).item() for name, loss in losses.items()}
    return {**means, "head_gradient": gradient}


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def _with_bucket(probabilities: Tensor) -> Tensor:
    """The last entry is what the others leave."""
    return torch.cat((probabilities, 1 - probabilities.sum(-1, keepdim=True)), -1)


@pytest.mark.parametrize("form", ["fused", "materialised"])
@pytest.mark.parametrize(("tp", "sequence_parallel"), [(1, False), (2, False), (2, True)])
def test_losses_and_gradient_are_those_of_the_formulas(
    form: str, tp: int, sequence_parallel: bool, tmp_path: Path
) -> None:
    kd = {"logit_kl_temperature": 2.0, "logits_form": form, "loss_balancer": "static", "intermediate_loss_weight": 0.0,
          "skip_lm_loss": False, "kd_loss_scale": 1.0}  # fmt: skip
    layout = {"tp": tp, "sequence_parallel": sequence_parallel, "teacher": {"hidden_size": 32}}
    cfg = tiny_config(tmp_path, kd=kd, micro_batch_size=4, **layout)
    steps = run_ranks(tp, one_step, cfg, masked=3)
    whole = {**steps[0]}
    for name in ("student", "teacher"):
        whole["heads"][name] = torch.cat([step["heads"][name] for step in steps])
        if sequence_parallel:
            whole["hidden"][name] = torch.cat([step["hidden"][name] for step in steps])
    expected = formulas(whole, None, temperature=2.0)
    assert whole["tokens"] == 8 * 13
    for name in ("logits_loss", "intermediate_loss", "lm_loss"):
        assert whole["means"][name] == pytest.approx(expected[name], rel=1e-5), name
    assert whole["means"]["loss"] == pytest.approx(expected["logits_loss"] + expected["lm_loss"], rel=1e-5)


@pytest.mark.parametrize("form", ["fused", "materialised"])
@pytest.mark.parametrize("tp", [1, 2])
def test_the_heads_gradient_is_that_of_the_formula(form: str, tp: int, tmp_path: Path) -> None:
    kd = {"logits_form": form, "loss_balancer": "static", "intermediate_loss_weight": 0.0}
    cfg = tiny_config(tmp_path, kd=kd, micro_batch_size=4, tp=tp, teacher={"hidden_size": 32})
    steps = run_ranks(tp, one_step, cfg, masked=3)
    whole = {**steps[0], "heads": {n: torch.cat([s["heads"][n] for s in steps]) for n in ("student", "teacher")}}
    gradient = torch.cat([step["grads"]["output_layer.weight"] for step in steps])
    expected = formulas(whole, None, temperature=1.0)["head_gradient"]
    torch.testing.assert_close(gradient[:VOCAB].double(), expected, rtol=1e-5, atol=1e-8)
    assert not gradient[VOCAB:].any()  # padding


FORMS: dict[str, dict[str, Any]] = {
    "fused": {"logits_form": "fused"},
    "materialised": {"logits_form": "materialised"},
    "top-k": {"logit_kl_topk": 7},
}


EVALUATED = ("logits_loss", "lm_loss", "teacher_kl", "teacher_top1_agreement", "teacher_top5_agreement")


def one_step_each(cfgs: list[ConfigContainer], masked: int) -> list[dict[str, Any]]:
    """On a rank: `one_step` of one configuration after the other."""
    return [one_step(cfg, masked=masked) for cfg in cfgs]


@pytest.mark.slow
@pytest.mark.parametrize("tp", [1, 2])
def test_models_of_different_vocabulary_are_compared_over_the_ids_that_both_have(tp: int, tmp_path: Path) -> None:
    """At TP2 a shard is 192 rows: the second holds 58 ids of one model, 108 of the other, and padding."""
    cases = [(form, sizes) for form in FORMS for sizes in ((250, 300), (300, 250))]
    balance = {"logit_kl_temperature": 2.0, "loss_balancer": "static", "intermediate_loss_weight": 0.0}
    cfgs = [
        tiny_config(
            tmp_path, kd={**FORMS[form], **balance}, micro_batch_size=4, tp=tp,
            student={"vocab_size": student_ids}, teacher={"vocab_size": teacher_ids, "hidden_size": 32},
        )
        for form, (student_ids, teacher_ids) in cases
    ]  # fmt: skip
    ranks = run_ranks(tp, one_step_each, cfgs, 3)
    for (form, sizes), steps in zip(cases, zip(*ranks, strict=True), strict=True):
        whole = {**steps[0], "heads": {n: torch.cat([s["heads"][n] for s in steps]) for n in ("student", "teacher")}}
        assert whole["heads"]["student"].shape == whole["heads"]["teacher"].shape == (384, 32)
        expected = formulas(whole, None, 2.0, *sizes, topk=FORMS[form].get("logit_kl_topk"))
        assert whole["means"]["logits_loss"] == pytest.approx(expected["logits_loss"], rel=1e-5)
        gradient = torch.cat([step["grads"]["output_layer.weight"] for step in steps])
        torch.testing.assert_close(gradient[: sizes[0]].double(), expected["head_gradient"], rtol=1e-5, atol=1e-8)
        assert not gradient[min(sizes) :].any()  # no id of one model alone, and no padding
        for name in EVALUATED:
            assert whole["evaluated"][name] == pytest.approx(expected[name], rel=1e-5), (form, sizes, name)


@pytest.mark.slow
@pytest.mark.parametrize("tp", [1, 2])
def test_a_batch_without_a_token_that_counts_moves_nothing(tp: int, tmp_path: Path) -> None:
    kinds = [*FORMS.values(), {"loss_balancer": "modelopt"}]
    cfgs = [tiny_config(tmp_path, kd={"skip_lm_loss": False, **kd}, micro_batch_size=4, tp=tp) for kd in kinds]
    for steps in run_ranks(tp, one_step_each, cfgs, 16):
        for cfg, step in zip(cfgs, steps, strict=True):
            assert step["tokens"] == 0
            assert set(step["means"].values()) == {0.0}, (cfg.model.kd_config, step["means"])
            for name, gradient in step["grads"].items():
                assert not gradient.any(), (cfg.model.kd_config, name)


def modelopts_own_step(cfg: ConfigContainer, masked: int) -> dict[str, Any]:
    """On a rank: the same batch through ModelOpt's criteria, balancer and nothing of ours."""
    import modelopt.torch.distill as mtd
    import modelopt.torch.distill.plugins.megatron as plugin

    from megatron_kd.config.derived import derived
    from megatron_kd.data.tokens.tokenizer import load_tokenizer
    from megatron_kd.placement.colocated import Colocated
    from megatron_kd.runtime.start import running_ranks
    from megatron_kd.teachers.build_teacher import build_teacher
    from megatron_kd.teachers.in_flight import InFlight
    from megatron_kd.training.run_data import RunData
    from megatron_kd.training.run_state import _build_student

    kd = cfg.model.kd_config
    with running_ranks(
        tensor_model_parallel_size=cfg.model.tensor_model_parallel_size, pipeline_model_parallel_size=1, seed=1
    ) as layout:
        values = derived(cfg, layout.world_size)
        student = _build_student(cfg, values, layout, chunk=0)
        teacher = build_teacher(cfg, cfg.model, values, layout, Colocated(), InFlight()).model
        settings = plugin.setup_distillation_config(
            plugin.DistillationConfig(
                intermediate_layer_pairs=[tuple(pair) for pair in kd.intermediate_layer_pairs],
                skip_lm_loss=kd.skip_lm_loss, kd_loss_scale=kd.kd_loss_scale,
                logit_kl_temperature=kd.logit_kl_temperature,
            ),
            student.config, teacher.config,
        )  # fmt: skip
        mode = {"teacher_model": teacher, "criterion": settings.criterion, "loss_balancer": settings.loss_balancer}
        model = mtd.convert(student, mode=[("kd_loss", mode)])
        plugin.adjust_distillation_model_for_mcore(model, settings)
        batch = next(RunData(cfg, values, layout, load_tokenizer(cfg.tokenizer)).training(0))
        mask = batch.loss_mask
        mask[:, :masked] = 0.0
        lm = model(batch.tokens, batch.position_ids, None, labels=batch.labels)

        def reduce(output: tuple[Tensor, bool, bool]) -> Tensor:
            loss, over_tp, _ = output
            mean = (loss * mask).sum() / mask.sum()
            if over_tp:  # as Megatron-LM does: the loss is this shard's part, its gradient is right already
                whole = mean.detach().clone()
                torch.distributed.all_reduce(whole, group=layout.tp.group)
                mean = mean + (whole - mean.detach())
            return mean

        losses = model.compute_kd_loss(student_loss=(lm * mask).sum() / mask.sum(), loss_reduction_fn=reduce)
        losses["kd_loss"].backward()
        return {
            "losses": {name: loss.item() for name, loss in losses.items()},
            "grads": {name: p.grad for name, p in model.named_parameters() if p.grad is not None},
        }


@pytest.mark.parametrize("skip_lm_loss", [True, False])
@pytest.mark.parametrize("tp", [1, 2])
def test_a_step_under_modelopts_balancer_is_modelopts_own(tp: int, skip_lm_loss: bool, tmp_path: Path) -> None:
    kd = {"loss_balancer": "modelopt", "skip_lm_loss": skip_lm_loss, "kd_loss_scale": 0.6, "logit_kl_temperature": 2.0}
    # No padding and equal widths: ModelOpt counts padded slots, and initialises its projection separately.
    sizes = {"hidden_size": 32, "vocab_size": 256}
    cfg = tiny_config(tmp_path, kd=kd, tp=tp, teacher=sizes, student={"vocab_size": 256})
    cfg.tokenizer.vocab_size = 256
    ours = run_ranks(tp, one_step, cfg, masked=5)
    theirs = run_ranks(tp, modelopts_own_step, cfg, 5)
    for mine, other in zip(ours, theirs, strict=True):
        assert mine["means"]["loss"] == pytest.approx(other["losses"]["kd_loss"], rel=1e-5)
        assert mine["means"]["logits_loss"] == pytest.approx(other["losses"]["logits_loss"], rel=1e-5)
        assert mine["means"]["intermediate_loss"] == pytest.approx(other["losses"]["intermediate_loss"], rel=1e-5)
        for name in GRADIENTS:
            torch.testing.assert_close(mine["grads"][name], other["grads"][name], rtol=1e-4, atol=1e-7)
