"""Where a run continues, what it refuses, and that its state is whole."""

from __future__ import annotations

import dataclasses
import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from megatron_kd.errors import CheckpointCorrupt, RunFolderInUse
from tests.faults.damage import flip_bit, remove, truncate
from tests.faults.runs import train_on
from tests.hooks import On
from tests.ranks import RankFailed, run_ranks
from tests.tiny import tiny_config, train_and_read
from tests.training.test_run_checkpoint import losses, weights_of

SAVED: dict[str, Any] = {"save": True, "save_interval": 2, "micro_batch_size": 4}


@pytest.fixture(scope="module")
def four_steps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with checkpoints of two and four steps."""
    folder = tmp_path_factory.mktemp("four")
    run_ranks(2, train_and_read, tiny_config(folder, iters=4, **SAVED))
    return folder


def test_auto_takes_the_newest_that_can_be_read_and_says_so(four_steps: Path, tmp_path: Path) -> None:
    run_dir = Path(shutil.copytree(four_steps, tmp_path / "run"))
    damaged = run_dir / "checkpoints/iter_0000004"
    flip_bit(damaged / "__0_0.distcp", random.Random(3))
    resumed = run_ranks(2, train_on, tiny_config(run_dir, iters=4, **SAVED))
    for rank in resumed:
        assert rank.step == 2
        assert len(rank.notes) == 1
        assert f"step 4 was refused: {damaged}/__0_0.distcp: has other content" in rank.notes[0]
        assert f"it is now {damaged}.corrupt" in rank.notes[0]
    assert weights_of(run_dir, 4) == weights_of(four_steps, 4)
    names = sorted(path.name for path in (run_dir / "checkpoints").iterdir())
    assert names == ["iter_0000002", "iter_0000004", "iter_0000004.corrupt"]


def test_a_run_that_was_killed_before_it_could_delete_old_checkpoints_does_so_at_its_start(
    four_steps: Path, tmp_path: Path
) -> None:
    run_dir = Path(shutil.copytree(four_steps, tmp_path / "run"))
    run_ranks(2, train_on, tiny_config(run_dir, iters=4, most_recent_k=1, **{**SAVED, "save": False}))
    assert sorted(path.name for path in (run_dir / "checkpoints").iterdir()) == ["iter_0000002", "iter_0000004"]
    run_ranks(2, train_on, tiny_config(run_dir, iters=4, most_recent_k=1, **SAVED))
    assert [path.name for path in (run_dir / "checkpoints").iterdir()] == ["iter_0000004"]


def refused(cfgs: list[Any]) -> list[str]:
    """On a rank: what each run is refused with."""
    from megatron_kd.training.train import train

    told = []
    for cfg in cfgs:
        with pytest.raises(CheckpointCorrupt) as error:
            train(cfg)
        told.append(str(error.value))
    return told


def test_a_step_that_was_asked_for_and_cannot_be_read_is_an_error(four_steps: Path, tmp_path: Path) -> None:
    run_dir = Path(shutil.copytree(four_steps, tmp_path / "run"))
    truncate(run_dir / "checkpoints/iter_0000004/common.pt", random.Random(4))
    remove(run_dir / "checkpoints/iter_0000002/manifest.json", random.Random(4))
    named = tiny_config(run_dir, iters=4, resume=4, **SAVED)
    none_left = tiny_config(run_dir, iters=4, **SAVED)
    said = run_ranks(2, refused, [named, none_left])
    assert said[0] == said[1]
    assert "iter_0000004/common.pt: has" in said[0][0]
    assert "none of the checkpoints" in said[0][1]
    assert "common.pt" in said[0][1] and "iter_0000002: has no manifest.json" in said[0][1]
    assert CheckpointCorrupt.exit_code == 18
    assert sorted(p.name for p in (run_dir / "checkpoints").iterdir()) == ["iter_0000002", "iter_0000004"]


def start_beside_another(cfg: Any) -> str:
    """On a rank: start a run in a folder that this test's process holds."""
    from megatron_kd.training.train import train

    with pytest.raises(RunFolderInUse) as told:
        train(cfg)
    return str(told.value)


def test_two_runs_do_not_share_a_folder(tmp_path: Path) -> None:
    import os

    from megatron_kd.runtime.lock import only_run_in

    with only_run_in(tmp_path):
        said = run_ranks(2, start_beside_another, tiny_config(tmp_path, **SAVED))
    assert said == [f"logger.run_dir={tmp_path} is in use by process {os.getpid()} on {os.uname().nodename}; "
                    "wait for that run, or choose another folder"] * 2  # fmt: skip
    assert [path.name for path in tmp_path.iterdir()] == ["run.lock"]


# The saved fields of a run, and why the others need not be saved; each new field must be added to either.
IN_A_CHECKPOINT = {
    "Run": {
        "students",
        "optimizer",
        "scheduler",
        "step",
        "best",
        "objective",
        "consumed_samples",
        "data_order",
        "inputs",
    },
    "Balancer": {"previous"},
    "Best": {"metric", "last", "best", "saved", "waited"},
}
NOT_IN_A_CHECKPOINT = {
    "Run": {
        "cfg": "given",
        "derived": "from cfg",
        "layout": "from cfg and the ranks",
        "chunks": "wrappers of the students; their gradients are computed again each step",
        "teacher": "frozen; read from where it came",
        "placement": "from cfg and the ranks",
        "doing": "what is being done",
    },
    "Balancer": {"config": "from cfg"},
    "Best": {},
}


def saved_and_derived(cfg: Any) -> dict[str, Any]:
    """On a rank: a run's fields, and every value in its objective and scheduler that training changes."""
    from megatron_kd.training.train import train

    before: dict[str, dict[str, str]] = {}
    hook = On(before_run=lambda run: before.update({name: state_of(run, name) for name in ("objective", "scheduler")}))
    train(cfg, [hook])
    run, found = hook.run, dict[str, Any]()
    for name, values in before.items():
        after = state_of(run, name)
        found[name] = {key for key in after if values.get(key) != after[key]}
    found["saved scheduler"] = set(run.scheduler.state_dict())
    found["buffers"] = [
        name for student in run.students for name, _ in student.named_buffers() if name not in student.state_dict()
    ]
    found["Run"] = {field.name for field in dataclasses.fields(run)}
    found["Balancer"] = set(vars(run.balancer))
    found["Best"] = {field.name for field in dataclasses.fields(run.best)}
    return found


def state_of(run: Any, name: str) -> dict[str, str]:
    """The plain values in a part of a run and in the parts that it owns, by class and name."""
    values, todo, seen = {}, [getattr(run, name)], set()
    while todo:
        owner = todo.pop()
        seen.add(id(owner))
        for key, value in vars(owner).items():
            if isinstance(value, (int, float, str, tuple, list, dict, type(None))):
                values[f"{type(owner).__name__}.{key}"] = repr(value)
            elif type(value).__module__.startswith("megatron_kd.distillation") and id(value) not in seen:
                todo.append(value)
    return values


def test_all_of_a_runs_state_is_saved_or_follows_from_what_is(tmp_path: Path) -> None:
    found = run_ranks(1, saved_and_derived, tiny_config(tmp_path, iters=3, kd={"skip_lm_loss": False}))[0]
    for owner, saved in IN_A_CHECKPOINT.items():
        decided = saved | NOT_IN_A_CHECKPOINT[owner].keys()
        assert found[owner] == decided, f"{owner}: save it, or say here why not"
    # The other is memory that one step leaves to the next.
    assert found["objective"] == {"Balancer.previous", "FusedLogits._spare_gradients"}
    assert found["scheduler"] == {"OptimizerParamScheduler.num_steps"}
    assert "num_steps" in found["saved scheduler"]
    assert found["buffers"] == []


def test_the_best_validation_survives_a_resume(tmp_path: Path) -> None:
    cfg = tiny_config(tmp_path, iters=6, **SAVED)
    cfg.validation.eval_interval = 1
    cfg.optimizer.lr = 0.5  # so that the loss soon rises
    records = run_ranks(2, train_and_read, cfg)[0]
    measured = {r["step"]: r["teacher_kl"] for r in records if r["split"] == "validation"}
    best = min(measured, key=lambda step: measured[step])
    assert best % 2 == 0, "it has a checkpoint"
    said = {
        "metric": "teacher_kl",
        "value": measured[best],
        "step": best,
        "checkpoint": str(tmp_path / f"checkpoints/iter_{best:07d}"),
    }
    assert json.loads((tmp_path / "best.json").read_text()) == said
    assert json.loads((tmp_path / "checkpoints/iter_0000006/run_state.json").read_text())["best"] == {
        "metric": "teacher_kl",
        "last": {"step": 6, "value": measured[6]},
        "best": {"step": best, "value": measured[best]},
        "saved": {"step": best, "value": measured[best]},
        "waited": 6 - best,
    }
    (tmp_path / "best.json").unlink()
    shutil.rmtree(tmp_path / "checkpoints/iter_0000006")
    again = run_ranks(2, train_on, cfg)[0]
    assert again.step == 4 and losses(again.records) == losses(records)
    assert json.loads((tmp_path / "best.json").read_text()) == said


@pytest.mark.slow
def test_a_new_layout_draws_other_random_numbers_and_the_same_samples(four_steps: Path, tmp_path: Path) -> None:
    """With dropout a run at other ranks cannot be bitwise; it is the same one each time, on each rank."""
    shutil.copytree(four_steps, tmp_path / "a")
    shutil.copytree(four_steps, tmp_path / "b")
    runs = [
        run_ranks(1, train_on, tiny_config(tmp_path / name, iters=6, student={"hidden_dropout": 0.1}, save=True))[0]
        for name in ("a", "b")
    ]
    assert [run.step for run in runs] == [4, 4]
    assert losses(runs[0].records) == losses(runs[1].records)


def test_a_checkpoint_of_other_sizes_is_no_corrupt_one(four_steps: Path) -> None:
    other = tiny_config(four_steps, iters=6, student={"ffn_hidden_size": 128}, **SAVED)
    with pytest.raises(RankFailed, match=r"ConfigError: model.ffn_hidden_size=128: the run .* began with 64"):
        run_ranks(1, train_and_read, other)
