"""Saving and resuming a run: student, optimizer, schedule, balancer, projections and random state."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from megatron.core.dist_checkpointing.mapping import ShardedObject, ShardedTensor

from megatron_kd.checkpoints.folders import checkpoint_path, delete_old
from megatron_kd.checkpoints.model_weights import vocabulary_mismatch
from megatron_kd.checkpoints.reading import Verified, load, mismatches, refuse_other_model, verify
from megatron_kd.checkpoints.saved_run import SavedRun
from megatron_kd.checkpoints.saved_state import RunState
from megatron_kd.checkpoints.shards import plan_shards
from megatron_kd.checkpoints.writing import Draft, attempt, begin, complete
from megatron_kd.config.measured import best_metric
from megatron_kd.config.run_config import dump_config
from megatron_kd.data.chat.trained_template import trained_template
from megatron_kd.distillation.convert import load_projections, plain_students, projection_sharded_state
from megatron_kd.errors import CheckpointCorrupt
from megatron_kd.models.fake_quantization import expect_input_scales
from megatron_kd.runtime.seeds import random_state, reseed, set_random_state
from megatron_kd.runtime.together import on_rank_0, raised_together
from megatron_kd.training.best_validation import as_saved, resumed_best
from megatron_kd.training.optimizer_state import create_state, load_state
from megatron_kd.training.run_state import ForwardRun, Run

# Optimizer state is kept in the shape of the parameters, so that TP, PP and DP may change before it is loaded.
_SHARDING = {"distrib_optim_sharding_type": "fully_reshardable"}


def save_checkpoint(run: Run) -> Path:
    """Save the run after `run.step` steps, and drop checkpoints beyond `checkpoint.most_recent_k`. All ranks call this.

    Returns:
        The folder, complete. One that is already there is left as it is.

    Raises:
        CheckpointNotSaved: on every rank: the disk of one of them is full or fails.
    """
    if (draft := draft_checkpoint(run)) is not None:
        finish_checkpoint(run, complete(draft, attempt(draft)))
    return checkpoint_path(run.derived.checkpoints_dir, run.step)


def draft_checkpoint(run: Run) -> Draft | None:
    """Plan the checkpoint of `run.step`; None if it is there already. Every rank must call this."""
    run.best = run.best.with_checkpoint(run.step)
    final = checkpoint_path(run.derived.checkpoints_dir, run.step)
    if on_rank_0(final.exists):
        return None
    if run.cfg.ddp.overlap_param_gather:
        # The last update is gathered when the next forward needs it, and until then the weights here are old ones.
        for chunk in run.chunks:
            chunk.start_param_sync(force_sync=True)
    state = _sharded_state(run, is_loading=False)
    template = trained_template(run.cfg.dataset)
    return begin(final, lambda folder: plan_shards(state, folder), dump_config(run.cfg), _run_state(run), template)


def finish_checkpoint(run: Run, saved: Path) -> None:
    """Delete old checkpoints once `saved` is complete, but never that of the best validation."""
    best = {run.best.saved.step} if run.best.saved else set[int]()
    on_rank_0(lambda: delete_old(saved.parent, run.cfg.checkpoint.most_recent_k, besides=best))


def load_checkpoint(run: Run, checkpoint: Verified, begun: SavedRun) -> tuple[str, ...]:
    """Restore the run to the state saved in `checkpoint`, which `begun` describes. Every rank must call this.

    The parallel layout may differ. Random number generators are then seeded from the seed, the step and the rank's
    coordinates in the new layout, since the states of the old ranks do not map to the new ones.

    Returns:
        Notes to report.

    Raises:
        InputError: it belongs to another model.
        CheckpointCorrupt: its contents do not match its description.
    """
    create_state(run.optimizer)
    for student in run.students:
        expect_input_scales(student)
    state = _sharded_state(run, is_loading=True)
    with raised_together():
        _refuse_other_model(run, state, checkpoint)
    same_ranks = begun.state.layout == _layout(run)
    if same_ranks:
        state["random"] = _random_object(run, None)
    loaded = load(state, checkpoint)
    with plain_students(run.students):
        for index, student in enumerate(run.students):
            student.load_state_dict(loaded[_part(index)])
    if "kd" in loaded:
        load_projections(run.students, loaded["kd"])
    load_state(run.optimizer, loaded["optimizer"])
    notes = _load_run_state(run, begun)
    if same_ranks:
        set_random_state(loaded["random"])
    else:
        reseed(run.cfg.rng.seed, run.step)
    return notes


def _refuse_other_model(run: Run, state: dict[str, Any], checkpoint: Verified) -> None:
    assert checkpoint.state is not None
    saved_ids = checkpoint.state.vocab_size

    def of_vocabulary(wanted: ShardedTensor, have: tuple[int, ...]) -> list[str]:
        return vocabulary_mismatch(wanted, have, saved_ids, run.derived.true_vocab_size)

    refuse_other_model(
        mismatches(state, checkpoint.shapes, of_vocabulary),
        f"checkpoint.resume={run.cfg.checkpoint.resume}: {checkpoint.folder}",
    )


def _load_run_state(run: Run, begun: SavedRun) -> tuple[str, ...]:
    state, folder = begun.state, begun.folder
    try:
        run.scheduler.load_state_dict(dict(state.scheduler or {}))
        if run.balancer is not None and state.balancer:
            run.balancer.load_state_dict(dict(state.balancer))
        samples = run.cfg.validation.eval_iters * run.derived.global_batch_size
        same_samples = samples == begun.validation_samples
        run.best, note = resumed_best(state.best, best_metric(run.cfg), same_samples=same_samples)
    except (KeyError, TypeError) as error:
        raise CheckpointCorrupt(f"{folder}: its run_state.json lacks {error}") from error
    run.step = state.step
    run.consumed_samples, run.data_order = begun.consumed_samples, begun.data_order
    run.inputs = {**state.inputs, **run.inputs}  # a text that was tokenised is named no more by later attempts
    return (note,) if note else ()


def restore_losses(run: ForwardRun, path: Path, *, with_state: bool) -> None:
    """Let a run that only evaluates know the step of the checkpoint whose student it has, and weigh losses as it did.

    Args:
        run: built with the checkpoint's student.
        path: the checkpoint.
        with_state: whether projections and balancer are the checkpoint's too; it must be of the same distillation.
    """
    checkpoint = verify(path)
    assert checkpoint.state is not None, "a checkpoint with a manifest has it"
    run.step = checkpoint.state.step
    if not with_state or run.balancer is None:
        return
    # Every rank must call `load`, and those without a paired layer have nothing to load.
    wanted = {"kd": projection_sharded_state(run.students, run.layout)}
    load_projections(run.students, load(wanted, checkpoint, whole=False).get("kd", {}))
    if checkpoint.state.balancer:
        run.balancer.load_state_dict(dict(checkpoint.state.balancer))


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
        state["content_metadata"] = _SHARDING  # where megatron-core keeps it
    return state


def _part(chunk: int) -> str:
    return f"model{chunk}"  # of no consequence to the file, whose keys count layers over the whole model


def _random_object(run: Run, state: dict[str, Any] | None) -> ShardedObject:
    return ShardedObject("random", state, (run.layout.world_size,), (run.layout.rank,))


def _run_state(run: Run) -> RunState:
    return RunState(
        step=run.step,
        vocab_size=run.derived.true_vocab_size,
        quantization=run.cfg.model.quantization,
        scheduler=run.scheduler.state_dict(),
        balancer=run.balancer.state_dict() if run.balancer is not None else None,
        best=as_saved(run.best),
        layout=_layout(run),
        consumed_samples=run.consumed_samples,
        data_order=run.data_order,
        inputs=run.inputs,
    )


def _layout(run: Run) -> dict[str, int]:
    layout = run.layout
    return {"tp": layout.tp.size, "pp": layout.pp.size, "dp": layout.dp.size, "world_size": layout.world_size}
