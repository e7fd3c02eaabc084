"""Saving and resuming a run: student, optimizer, schedule, balancer, projections and random state."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.mapping import ShardedObject

from megatron_kd.config.saved import complete_checkpoints
from megatron_kd.config.yaml_io import dump_config
from megatron_kd.distillation.convert import load_projections, plain_students, projection_sharded_state
from megatron_kd.errors import InputError
from megatron_kd.models.fake_quantization import expect_input_scales
from megatron_kd.runtime.seeds import random_state, set_random_state
from megatron_kd.training.optimizer_state import create_state, load_state
from megatron_kd.training.run import ForwardRun, Run
from megatron_kd.training.writing import new_checkpoint, write_state

# Optimizer state is kept in the shape of the parameters, so that TP, PP and DP may change before it is loaded.
_SHARDING = {"distrib_optim_sharding_type": "fully_reshardable"}


def checkpoint_path(folder: Path, step: int) -> Path:
    """Where the checkpoint of `step` lies."""
    return folder / f"iter_{step:07d}"


def save_checkpoint(run: Run) -> Path:
    """Save the run after `run.step` steps, and drop checkpoints beyond `checkpoint.most_recent_k`.

    Returns:
        The folder. One that is already there is left as it is.
    """
    folder = run.derived.checkpoints_dir
    final = checkpoint_path(folder, run.step)
    if final.exists():
        return final
    if run.cfg.ddp.overlap_param_gather:
        # The last update is gathered when the next forward needs it, and until then the weights here are old ones.
        for chunk in run.chunks:
            chunk.start_param_sync(force_sync=True)
    state = _sharded_state(run, is_loading=False)
    state["run"] = _common_state(run)
    with new_checkpoint(final, dump_config(run.cfg)) as temporary:
        write_state(state, temporary, _SHARDING)
    if run.layout.rank == 0:
        _drop_old(folder, run.cfg.checkpoint.most_recent_k)
    torch.distributed.barrier()
    return final


def resume(run: Run) -> Path | None:
    """Continue from the checkpoint that `checkpoint.resume` names; None where there is nothing to continue.

    Raises:
        InputError: `checkpoint.resume` is a step that was never saved, or the checkpoint is of another model.
    """
    wanted = run.cfg.checkpoint.resume
    found = complete_checkpoints(run.derived.checkpoints_dir)
    if wanted == "auto":
        wanted = max(found, default="never")
    _refuse_lost_saves(run, wanted, found)
    if wanted == "never":
        return None
    if wanted not in found:
        raise InputError(
            f"checkpoint.resume={wanted}: no such checkpoint in {run.derived.checkpoints_dir}; "
            f"there are {list(found) or 'none'}"
        )
    load_checkpoint(run, found[int(wanted)])
    return found[int(wanted)]


def _refuse_lost_saves(run: Run, wanted: int | str, found: dict[int, Path]) -> None:
    """A checkpoint is never overwritten, so a run that would reach steps saved by another could not save its own."""
    later = [step for step in found if wanted == "never" or step > int(wanted)]
    if later and run.cfg.checkpoint.save:
        raise InputError(
            f"checkpoint.resume={run.cfg.checkpoint.resume}: {run.derived.checkpoints_dir} already has checkpoints of "
            f"later steps, {later}, which are never overwritten; move them away, or choose another logger.run_dir"
        )


def load_checkpoint(run: Run, path: Path) -> None:
    """Put the run back to where it was when `path` was saved. The parallel layout may differ."""
    common = dist_checkpointing.load_common_state_dict(str(path))["run"]
    _refuse_other_quantization(run, path, common.get("quantization"))
    create_state(run.optimizer)
    for student in run.students:
        expect_input_scales(student)
    state = _sharded_state(run, is_loading=True)
    if common["world_size"] == run.layout.world_size and common["layout"] == _layout(run):
        state["random"] = _random_object(run, None)
    loaded = dist_checkpointing.load(state, str(path))
    with plain_students(run.students):
        for index, student in enumerate(run.students):
            student.load_state_dict(loaded[_part(index)])
    if "kd" in loaded:
        load_projections(run.students, loaded["kd"])
    load_state(run.optimizer, loaded["optimizer"])
    run.scheduler.load_state_dict(common["scheduler"])
    if run.balancer is not None and common["balancer"]:
        run.balancer.load_state_dict(common["balancer"])
    run.step = common["step"]
    if "random" in loaded:
        set_random_state(loaded["random"])


def _refuse_other_quantization(run: Run, path: Path, saved: str | None) -> None:
    """A run's quantisation is part of what it continues; another one starts from the weights instead."""
    if saved != run.cfg.model.quantization:
        raise InputError(
            f"checkpoint.resume: {path} is of a run with model.quantization={saved or 'null'}, this one has "
            f"{run.cfg.model.quantization or 'null'}; set it back, or name {path} in checkpoint.pretrained_checkpoint "
            "and choose another logger.run_dir"
        )


def restore_losses(run: ForwardRun, path: Path, *, with_state: bool) -> None:
    """Let a run that only evaluates know the step of the checkpoint whose student it has, and weigh losses as it did.

    Args:
        run: built with the checkpoint's student.
        path: the checkpoint.
        with_state: whether projections and balancer are the checkpoint's too; it must be of the same distillation.
    """
    common = dist_checkpointing.load_common_state_dict(str(path))["run"]
    run.step = common["step"]
    if not with_state or run.balancer is None:
        return
    # Every rank must call `load`, and those without a paired layer have nothing to load.
    wanted = {"kd": projection_sharded_state(run.students, run.layout)}
    load_projections(run.students, dist_checkpointing.load(wanted, str(path)).get("kd", {}))
    if common["balancer"]:
        run.balancer.load_state_dict(common["balancer"])


def _sharded_state(run: Run, *, is_loading: bool) -> dict[str, Any]:
    with plain_students(run.students):
        state: dict[str, Any] = {_part(i): student.sharded_state_dict() for i, student in enumerate(run.students)}
    projections = projection_sharded_state(run.students, run.layout)
    if projections:
        state["kd"] = projections
    # The optimizer finds its parameters among these by identity: projections included.
    state["optimizer"] = run.optimizer.sharded_state_dict(dict(state), is_loading=is_loading, metadata=_SHARDING)
    if not is_loading:
        state["random"] = _random_object(run, random_state())
    return state


def _part(chunk: int) -> str:
    return f"model{chunk}"  # of no consequence to the file, whose keys count layers over the whole model


def _random_object(run: Run, state: dict[str, Any] | None) -> ShardedObject:
    return ShardedObject("random", state, (run.layout.world_size,), (run.layout.rank,))


def _common_state(run: Run) -> dict[str, Any]:
    return {
        "step": run.step,
        "scheduler": run.scheduler.state_dict(),
        "balancer": run.balancer.state_dict() if run.balancer is not None else None,
        "world_size": run.layout.world_size,
        "layout": _layout(run),
        "vocab_size": run.derived.true_vocab_size,
        "quantization": run.cfg.model.quantization,
    }


def _layout(run: Run) -> list[int]:
    return [run.layout.tp.size, run.layout.pp.size, run.layout.dp.size]


def _drop_old(folder: Path, keep: int | None) -> None:
    if keep is None:
        return
    for path in list(complete_checkpoints(folder).values())[:-keep]:
        doomed = path.with_name(f".{path.name}.deleted")  # renamed first: half a checkpoint never has its name
        path.rename(doomed)
        shutil.rmtree(doomed)
