"""Distilling a fake-quantised student: it recovers, at any layout alike, and a checkpoint keeps its scales."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_kd.commands import cli
from megatron_kd.config.container import ConfigContainer
from tests.ranks import RankFailed, run_ranks
from tests.tiny import metrics_of, tiny_config, train_and_read
from tests.training.test_run_checkpoint import losses, state_tensors, stop_after

pytestmark = pytest.mark.slow  # whole runs on several ranks

# Wide enough for blocks of 128 at TP2. The gate's and the up projection's rows differ in size, so that a scale that
# were read in another row's place would show.
SHAPE: dict[str, Any] = {"hidden_size": 256, "ffn_hidden_size": 256, "init_method_std": 0.08}
LAYOUTS = [
    {"tp": 2}, {"tp": 2, "sequence_parallel": True}, {"pp": 2, "micro_batch_size": 4}, {"micro_batch_size": 4},
]  # fmt: skip


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The checkpoint of a model that is its own teacher."""
    folder = tmp_path_factory.mktemp("teacher")
    cfg = tiny_config(folder, iters=1, distilled=False, student=SHAPE, save=True)
    cfg.optimizer.lr = 1e-12  # as it was drawn: every batch is as good as the next
    run_ranks(1, train_and_read, cfg)
    return str(folder / "checkpoints/iter_0000001")


def quantised(folder: Path, teacher: str, quantization: str | None, **options: Any) -> ConfigContainer:
    """A run in which `teacher` teaches its own quantised copy, by its logits."""
    cfg = tiny_config(
        folder,
        student={**SHAPE, "init": None, "quantization": quantization, **options.pop("student", {})},
        teacher={**SHAPE, "num_layers": 2, "init": None, "checkpoint": teacher},
        kd={"intermediate_layer_pairs": []},
        pretrained_checkpoint=teacher,
        **options,
    )
    cfg.optimizer.lr = 2e-5
    return cfg


def logits_losses(records: list[dict[str, Any]]) -> list[float]:
    return [record["logits_loss"] for record in records if record["split"] == "train"]


def test_the_quantised_copy_recovers(teacher: str, tmp_path: Path) -> None:
    cfg = quantised(tmp_path, teacher, "int4_weight_only", iters=12, micro_batch_size=32)
    cfg.train.global_batch_size, cfg.optimizer.lr, cfg.optimizer.adam_beta2 = 32, 2e-4, 0.95
    records = run_ranks(1, train_and_read, cfg, timeout=300)[0]
    first, *_, last = logits_losses(records)
    assert first > 0.1  # a copy that is not quantised starts at 0, as the next test says
    assert last < 0.8 * first
    assert records[-1]["split"] == "validation"
    assert records[-1]["logits_loss"] < 0.8 * first  # on tokens it has not seen


def test_quantisation_is_what_keeps_the_copy_from_its_teacher(teacher: str, tmp_path: Path) -> None:
    plain = run_ranks(1, train_and_read, quantised(tmp_path, teacher, None, iters=1))[0]
    assert logits_losses(plain)[0] == pytest.approx(0.0, abs=1e-7)


@pytest.mark.parametrize(("quantization", "layouts"), [("int8", LAYOUTS[1:]), ("int4_weight_only", LAYOUTS[:1])])
def test_every_layout_quantises_alike(
    quantization: str, layouts: list[dict[str, Any]], teacher: str, tmp_path: Path
) -> None:
    one = logits_losses(run_ranks(1, train_and_read, quantised(tmp_path / "one", teacher, quantization, iters=2))[0])
    for index, layout in enumerate(layouts):
        cfg = quantised(tmp_path / str(index), teacher, quantization, iters=2, **layout)
        other = logits_losses(run_ranks(2, train_and_read, cfg)[0])
        # A rounding error can send an input to the next of its 255 values.
        assert other == pytest.approx(one, rel=1e-2 if quantization == "int8" else 1e-4), layout


@pytest.mark.parametrize(
    ("quantization", "layout"),
    [("int8", {"tp": 2, "sequence_parallel": True, "student": {"recompute_granularity": "full",
      "recompute_method": "uniform", "recompute_num_layers": 1}}),
     ("fp8", {"pp": 2, "micro_batch_size": 4, "precision": "bf16"})],
)  # fmt: skip
def test_a_resumed_run_is_bitwise_the_unbroken_one_and_not_calibrated_again(
    quantization: str, layout: dict[str, Any], teacher: str, tmp_path: Path
) -> None:
    saving = {"iters": 4, "save": True, "save_interval": 2}
    first = quantised(tmp_path / "a", teacher, quantization, **saving, **dict(layout))
    unbroken = run_ranks(2, train_and_read, first)[0]
    broken = quantised(tmp_path / "b", teacher, quantization, **saving, **dict(layout))
    run_ranks(2, stop_after, broken, 2)
    broken.model.quantization_calibration_batches = 1
    resumed = run_ranks(2, train_and_read, broken)[0]
    assert losses(resumed) == losses(unbroken)


def test_a_run_continues_at_another_layout_with_the_same_scales(teacher: str, tmp_path: Path) -> None:
    saving = {"iters": 4, "save": True, "save_interval": 2}
    unbroken = run_ranks(1, train_and_read, quantised(tmp_path / "a", teacher, "int4_weight_only", **saving))[0]
    broken = quantised(tmp_path / "b", teacher, "int4_weight_only", **saving, tp=2)
    run_ranks(2, stop_after, broken, 2)
    one, two = (run_ranks(1, state_tensors, tmp_path / run / "checkpoints/iter_0000002")[0] for run in "ab")
    scales = [key for key in one if key.endswith("_amax")]
    assert len(scales) == 4  # of a layer's linear layers; layers share a key
    for key in scales:
        assert torch.equal(one[key], two[key]), key
    resumed = run_ranks(1, train_and_read, quantised(tmp_path / "b", teacher, "int4_weight_only", **saving))[0]
    assert logits_losses(resumed) == pytest.approx(logits_losses(unbroken), rel=1e-4)


def test_another_quantisation_is_no_continuation(teacher: str, tmp_path: Path) -> None:
    saving = {"save": True, "save_interval": 1}
    run_ranks(1, train_and_read, quantised(tmp_path, teacher, "int8", iters=1, **saving))
    with pytest.raises(RankFailed, match=r"model.quantization=null: the run .* began with int8"):
        run_ranks(1, train_and_read, quantised(tmp_path, teacher, None, iters=2, **saving))


def evaluated(run_dir: str, output: str) -> dict[str, float]:
    """On a rank: what `megatron-kd evaluate` measures of a run's student."""
    assert cli.main(["evaluate", run_dir, "--output", output]) == 0
    values: dict[str, float] = json.loads(Path(output).read_text())["values"]
    return values


def test_evaluation_is_of_the_quantised_student_by_its_own_scales(teacher: str, tmp_path: Path) -> None:
    cfg = quantised(tmp_path / "a", teacher, "int8", iters=2, save=True)
    cfg.optimizer.lr = 1e-3  # the weights part from those that scales were made of
    (run,) = run_ranks(1, train_and_read, cfg)
    (values,) = run_ranks(1, evaluated, str(tmp_path / "a"), str(tmp_path / "values.json"))
    assert values == metrics_of(run[-1])


def test_the_weights_of_a_quantised_student_are_read_as_a_plain_models(teacher: str, tmp_path: Path) -> None:
    run_ranks(1, train_and_read, quantised(tmp_path / "a", teacher, "int8", iters=1, save=True))
    checkpoint = str(tmp_path / "a/checkpoints/iter_0000001")
    cfg = quantised(tmp_path / "b", checkpoint, None, iters=1)
    assert logits_losses(run_ranks(1, train_and_read, cfg)[0])[0] == pytest.approx(0.0, abs=1e-7)
