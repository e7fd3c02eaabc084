"""Checkpoints: what is in them, that a run continues from them bitwise, and at other layouts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_kd.config.container import ConfigContainer
from megatron_kd.errors import InputError
from tests.hooks import On
from tests.ranks import RankFailed, run_ranks
from tests.tiny import TEACHER, read_metrics, tiny_config, train_and_read

pytestmark = pytest.mark.slow  # whole runs on several ranks

DROPOUT = {"hidden_dropout": 0.1, "attention_dropout": 0.1}
SAVED = {"save": True, "save_interval": 3}


def losses(records: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    names = ("step", "split", "loss", "logits_loss", "intermediate_loss", "grad_norm")
    return [tuple(record.get(name) for name in names) for record in records]


def stop_after(cfg: ConfigContainer, step: int) -> list[dict[str, Any]]:
    """Run `cfg` until `step` steps are done, as a kill right after the checkpoint of that step would."""
    from megatron_kd.training.train import train

    class Killed(BaseException):
        pass

    def die(run: Any) -> None:
        if run.step == step:
            raise Killed

    try:
        train(cfg, [On(after_save=die)])
    except Killed:
        return read_metrics(Path(cfg.logger.run_dir))
    raise AssertionError(f"the run was not stopped at step {step}")


@pytest.mark.parametrize(
    ("world_size", "layout"),
    [(1, {}), (2, {"tp": 2, "sequence_parallel": True, "student": DROPOUT}), (2, {"pp": 2, "micro_batch_size": 4}),
     (2, {"pp": 2, "micro_batch_size": 4, "student": DROPOUT}),
     (2, {"micro_batch_size": 4}), (2, {"micro_batch_size": 4, "precision": "bf16"}),
     (2, {"micro_batch_size": 4, "distributed_optimizer": False}), (2, {"micro_batch_size": 4, "overlap": True})],
)  # fmt: skip
def test_a_resumed_run_is_bitwise_the_unbroken_one(world_size: int, layout: dict[str, Any], tmp_path: Path) -> None:
    unbroken = run_ranks(world_size, train_and_read, tiny_config(tmp_path / "a", iters=6, **SAVED, **layout))[0]
    broken = tiny_config(tmp_path / "b", iters=6, **SAVED, **layout)
    before = run_ranks(world_size, stop_after, broken, 3)[0]
    assert [record["step"] for record in before] == [1, 2, 3]
    resumed = run_ranks(world_size, train_and_read, broken)[0]
    assert losses(resumed) == losses(unbroken)
    assert weights_of(tmp_path / "a", 6) == weights_of(tmp_path / "b", 6)


def test_overlapped_gathering_saves_the_weights_of_this_step(tmp_path: Path) -> None:
    for name, overlap in (("plain", False), ("overlapped", True)):
        cfg = tiny_config(tmp_path / name, iters=4, save=True, save_interval=2, micro_batch_size=4, overlap=overlap)
        run_ranks(2, train_and_read, cfg)
    assert weights_of(tmp_path / "plain", 2) == weights_of(tmp_path / "overlapped", 2)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The records of an uninterrupted run of one rank."""
    return run_ranks(1, train_and_read, tiny_config(tmp_path_factory.mktemp("unbroken"), iters=6, **SAVED))[0]


@pytest.mark.parametrize(
    ("first", "then"),
    [
        ((2, {"tp": 2}), (2, {"pp": 2, "micro_batch_size": 4})),
        ((2, {"pp": 2, "micro_batch_size": 4}), (2, {"tp": 2, "sequence_parallel": True})),
        ((2, {"micro_batch_size": 4}), (1, {})),
        ((1, {}), (4, {"tp": 2, "micro_batch_size": 4})),
        ((2, {"micro_batch_size": 4}), (4, {"micro_batch_size": 2})),
        ((2, {"tp": 2}), (1, {})),
        ((1, {}), (2, {"pp": 2, "micro_batch_size": 4})),
    ],
)
def test_a_run_continues_at_another_layout(
    first: tuple, then: tuple, unbroken: list[dict[str, Any]], tmp_path: Path
) -> None:
    before = run_ranks(first[0], stop_after, tiny_config(tmp_path / "b", iters=6, **SAVED, **first[1]), 3)[0]
    saved = run_ranks(1, state_tensors, tmp_path / "b/checkpoints/iter_0000003")[0]
    again = tiny_config(tmp_path / "b", iters=6, **SAVED, **then[1])
    reloaded = run_ranks(then[0], save_what_was_loaded, again, tmp_path / "c")[0]
    assert reloaded.keys() == saved.keys()
    assert any(key.startswith("optimizer.state.exp_avg_sq.kd.projections") for key in saved)
    for key, tensor in saved.items():
        assert torch.equal(tensor, reloaded[key]), key
    resumed = run_ranks(then[0], train_and_read, again)[0]
    assert len(before) == 3
    for ours, theirs in zip(resumed, unbroken, strict=True):
        assert ours["logits_loss"] == pytest.approx(theirs["logits_loss"], rel=1e-5), ours["step"]


def save_what_was_loaded(cfg: ConfigContainer, elsewhere: Path) -> dict[str, torch.Tensor]:
    """On a rank: resume `cfg`, save at once to another folder, and return that checkpoint's tensors."""
    from megatron_kd.config.derived import derived
    from megatron_kd.runtime.start import running_ranks
    from megatron_kd.training.resume import find_begun, resume
    from megatron_kd.training.run_checkpoint import save_checkpoint
    from megatron_kd.training.run_state import build_run

    model = cfg.model
    with running_ranks(
        tensor_model_parallel_size=model.tensor_model_parallel_size,
        pipeline_model_parallel_size=model.pipeline_model_parallel_size,
        seed=1,
    ) as layout:
        run = build_run(cfg, derived(cfg, layout.world_size), layout)
        resume(run, find_begun(cfg))
        run.derived = replace(run.derived, checkpoints_dir=elsewhere)
        return state_tensors(save_checkpoint(run))


def state_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """On every rank (it is a collective): the tensors of a checkpoint, whole."""
    from megatron.core import dist_checkpointing

    loaded = dist_checkpointing.load_plain_tensors(str(folder))
    return {key: value for key, value in loaded.items() if isinstance(value, torch.Tensor)}


def weights_of(run_dir: Path, step: int) -> dict[str, int]:
    tensors = run_ranks(1, state_tensors, run_dir / f"checkpoints/iter_{step:07d}")[0]
    return {key: hash(tensor.contiguous().view(torch.uint8).numpy().tobytes()) for key, tensor in tensors.items()}


def test_a_checkpoint_holds_the_student_and_nothing_of_the_teacher(tmp_path: Path) -> None:
    run_ranks(1, train_and_read, tiny_config(tmp_path, iters=3, **SAVED))
    tensors = run_ranks(1, state_tensors, tmp_path / "checkpoints/iter_0000003")[0]
    model = {key: t for key, t in tensors.items() if not key.startswith(("optimizer.", "kd."))}
    assert model["decoder.layers.mlp.linear_fc2.weight"].shape == (2, 32, 64)
    assert not [key for key in tensors if "teacher" in key or "loss_modules" in key]
    assert not [key for key, t in model.items() if TEACHER.hidden_size in t.shape]
    assert {key for key in tensors if key.startswith("kd.")} == {
        "kd.projections.0.weight",
        "kd.projections.0.bias",
    }


@pytest.mark.parametrize(("world_size", "layout"), [(1, {}), (2, {"tp": 2}), (2, {"pp": 2, "micro_batch_size": 4})])
def test_a_student_checkpoint_trains_on_as_a_plain_gpt(world_size: int, layout: dict, tmp_path: Path) -> None:
    distilled = run_ranks(
        1, train_and_read, tiny_config(tmp_path / "kd", iters=3, kd={"skip_lm_loss": False}, **SAVED)
    )[0]
    plain = tiny_config(
        tmp_path / "plain", iters=1, distilled=False, student={"init": None},
        pretrained_checkpoint=str(tmp_path / "kd"), **layout,
    )  # fmt: skip
    plain.optimizer.lr = 0.0
    records = run_ranks(world_size, train_and_read, plain)[0]
    assert records[-1]["lm_loss"] == pytest.approx(distilled[-1]["lm_loss"], rel=1e-5)


def load_and_gather(cfg: ConfigContainer) -> dict[str, torch.Tensor]:
    """On a rank: build the run of `cfg`, and return both models' embedding and head, whole."""
    from megatron_kd.config.derived import derived
    from megatron_kd.runtime.start import running_ranks
    from megatron_kd.training.run_state import build_run

    tp = cfg.model.tensor_model_parallel_size
    with running_ranks(tensor_model_parallel_size=tp, pipeline_model_parallel_size=1, seed=1) as layout:
        run = build_run(cfg, derived(cfg, layout.world_size), layout)
        whole = {}
        for who, model in (("student", run.students[0]), ("teacher", run.teacher.model)):
            for key in VOCABULARY:
                shard = model.get_parameter(key).detach()
                shards = [torch.empty_like(shard) for _ in range(tp)]
                torch.distributed.all_gather(shards, shard.contiguous(), group=layout.tp.group)
                whole[f"{who} {key}"] = torch.cat(shards)
        return whole


VOCABULARY = ("embedding.word_embeddings.weight", "output_layer.weight")


def test_checkpoints_load_at_the_width_that_student_and_teacher_share(tmp_path: Path) -> None:
    """A teacher of 250 ids saved 256 wide, beside a student of 300 ids; both are built 384 wide, at TP2."""
    plain = tiny_config(tmp_path / "teacher", iters=1, distilled=False, student={"hidden_size": 48}, save=True)
    run_ranks(1, train_and_read, plain)
    saved = run_ranks(1, state_tensors, tmp_path / "teacher/checkpoints/iter_0000001")[0]
    assert saved["output_layer.weight"].shape == (256, 48)
    sizes = {
        "student": {"vocab_size": 300},
        "teacher": {"hidden_size": 48, "ffn_hidden_size": 64, "num_layers": 2, "init": None,
                    "checkpoint": str(tmp_path / "teacher")},
    }  # fmt: skip
    for weights in run_ranks(2, load_and_gather, tiny_config(tmp_path / "load", tp=2, **sizes)):
        for key in VOCABULARY:
            teacher = weights[f"teacher {key}"]
            assert torch.equal(teacher[:250], saved[key][:250])
            assert teacher.shape == (384, 48) and not teacher[250:].any()
    records = [
        run_ranks(tp, train_and_read, tiny_config(tmp_path / f"tp{tp}", iters=2, tp=tp, save=True, **sizes))[0]
        for tp in (1, 2)
    ]
    for one, two in zip(*records, strict=True):
        assert two["logits_loss"] == pytest.approx(one["logits_loss"], rel=1e-5)


def test_a_student_saved_wide_beside_its_teacher_loads_at_its_own_width(tmp_path: Path) -> None:
    wide = tiny_config(tmp_path / "kd", iters=3, teacher={"vocab_size": 300}, kd={"skip_lm_loss": False}, **SAVED)
    distilled = run_ranks(1, train_and_read, wide)[0]
    saved = run_ranks(1, state_tensors, tmp_path / "kd/checkpoints/iter_0000003")[0]
    assert saved["output_layer.weight"].shape == (384, 32)
    plain = tiny_config(
        tmp_path / "plain", iters=1, distilled=False, tp=2, student={"init": None},
        pretrained_checkpoint=str(tmp_path / "kd"),
    )  # fmt: skip
    plain.optimizer.lr = 0.0
    records = run_ranks(2, train_and_read, plain)[0]
    assert records[-1]["lm_loss"] == pytest.approx(distilled[-1]["lm_loss"], rel=1e-5)
    wide.model.make_vocab_size_divisible_by, wide.train.train_iters = 512, 4
    assert run_ranks(1, train_and_read, wide)[0][-1]["step"] == 4


@pytest.mark.parametrize(
    ("vocab_size", "said"),
    [(200, r"output_layer.weight has 250 token ids, the model 200; set its vocab_size=250"),
     (257, r"output_layer.weight has 256 rows, too few for the model's 257 token ids")],
)  # fmt: skip
def test_weights_of_another_vocabulary_are_refused(vocab_size: int, said: str, tmp_path: Path) -> None:
    run_ranks(1, train_and_read, tiny_config(tmp_path / "a", iters=1, distilled=False, save=True))
    other = tiny_config(
        tmp_path / "b", distilled=False, student={"init": None, "vocab_size": vocab_size},
        pretrained_checkpoint=str(tmp_path / "a"),
    )  # fmt: skip
    other.tokenizer.vocab_size = 200
    with pytest.raises(RankFailed, match=rf"InputError: checkpoint.pretrained_checkpoint=.*{said}"):
        run_ranks(1, train_and_read, other)


def test_only_the_newest_checkpoints_are_kept(tmp_path: Path) -> None:
    run_ranks(1, train_and_read, tiny_config(tmp_path, iters=4, save=True, save_interval=1, most_recent_k=2))
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["iter_0000003", "iter_0000004"]


def test_a_step_that_was_never_saved_cannot_be_resumed(tmp_path: Path) -> None:
    run_ranks(1, train_and_read, tiny_config(tmp_path, iters=2, save=True))
    with pytest.raises(RankFailed, match=r"checkpoint.resume=7: no such checkpoint.*\[2\]"):
        run_ranks(1, train_and_read, tiny_config(tmp_path, iters=4, save=True, resume=7))


@pytest.mark.parametrize("resume", ["never", 1])
def test_a_run_that_could_not_save_its_steps_is_refused(resume: str | int, tmp_path: Path) -> None:
    run_ranks(1, train_and_read, tiny_config(tmp_path, iters=2, save=True, save_interval=1))
    with pytest.raises(RankFailed, match=rf"checkpoint.resume={resume}.*later steps.*never overwritten"):
        run_ranks(1, train_and_read, tiny_config(tmp_path, iters=4, save=True, resume=resume))
    unsaved = run_ranks(1, train_and_read, tiny_config(tmp_path, iters=2, resume=resume))[0]
    assert unsaved[-1]["step"] == 2


def test_weights_of_another_architecture_are_refused_by_name(tmp_path: Path) -> None:
    run_ranks(1, train_and_read, tiny_config(tmp_path / "a", iters=1, distilled=False, save=True))
    other = tiny_config(
        tmp_path / "b", distilled=False, student={"init": None, "ffn_hidden_size": 128},
        pretrained_checkpoint=str(tmp_path / "a"),
    )  # fmt: skip
    with pytest.raises(RankFailed, match=r"InputError: checkpoint.pretrained_checkpoint=.*linear_fc1.weight has shape"):
        run_ranks(1, train_and_read, other)


def test_a_path_without_a_checkpoint_is_refused(tmp_path: Path) -> None:
    from megatron_kd.checkpoints.contents import find_checkpoint

    with pytest.raises(InputError, match=r"model\.teacher\.checkpoint=.*no checkpoint there"):
        find_checkpoint(tmp_path, "model.teacher.checkpoint")
