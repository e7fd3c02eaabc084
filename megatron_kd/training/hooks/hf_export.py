"""Checkpoints as Hugging Face folders: the last one, or each, as `checkpoint.save_hf` says."""

from __future__ import annotations

from pathlib import Path

from megatron_kd.checkpoints.contents import step_of
from megatron_kd.huggingface.export import export_hf
from megatron_kd.runtime.together import on_rank_0
from megatron_kd.training.hooks.hook import Hook, Loop


class HuggingFaceExport(Hook):
    """Writes `run_dir/hf/iter_0000100` once its checkpoint is complete, by rank 0 while the others wait."""

    def after_save(self, loop: Loop, checkpoint: Path) -> None:
        """Export the checkpoint, if that is wanted. A folder that exists stays as it is."""
        if _is_wanted(loop, checkpoint):
            folder = loop.run.derived.run_dir / "hf" / checkpoint.name
            loop.announce(Hook.message, f"exported {on_rank_0(lambda: _export(checkpoint, folder))}")


def _is_wanted(loop: Loop, checkpoint: Path) -> bool:
    """Whether `checkpoint` is to be exported. A run that is stopping has no time for any but its last one."""
    wanted = loop.run.cfg.checkpoint.save_hf
    step = step_of(checkpoint)
    is_last = step is not None and loop.is_last(step)
    return bool(wanted) and (is_last or (wanted == "each" and not loop.stopping))


def _export(checkpoint: Path, folder: Path) -> str:
    return str(folder if folder.exists() else export_hf(checkpoint, folder, verified=True))
