"""EleutherAI's evaluation harness on a model on disk."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import yaml

from megatron_kd.errors import InputError
from megatron_kd.evaluation.saved_model import SavedModel
from megatron_kd.messages import first_line
from megatron_kd.resolve.recipe_files import MISTAKES

OFFLINE = ("HF_HUBOFFLINE", "HF_DATASETSOFFLINE")


def evaluate_tasks(
    model: SavedModel,
    tasks: list[str],
    *,
    include_path: str | None = None,
    tokenizer: str | None = None,
    batch_size: int = 8,
    **options: Any,
) -> dict[str, Any]:
    """The results of the harness's `simple_evaluate` for a model on disk, without samples.

    Args:
        model: where it lies.
        tasks: names of tasks, groups or tags.
        include_path: a folder of tasks beside the harness's own.
        tokenizer: a folder; None: the model's own.
        batch_size: requests at a time.
        options: of `simple_evaluate`.

    Raises:
        InputError: as `run`.
    """
    from lm_eval import simple_evaluate

    from megatron_kd.evaluation.as_huggingface import huggingface_folder

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    known = _task_manager(tasks, include_path)
    if missing := [name for name in tasks if not known.match_tasks([name])]:
        where = "" if include_path is None else f" nor in {include_path}"
        raise InputError(f"--tasks {','.join(missing)}: not among the harness's {len(known.all_tasks)} tasks{where}")
    with huggingface_folder(model, tokenizer) as folder:
        network = _language_model(folder, model.folder, tokenizer, batch_size)
        results: dict[str, Any] = simple_evaluate(
            network, tasks=tasks, task_manager=known, log_samples=False, **options
        )
    return results


def _task_manager(tasks: list[str], include_path: str | None) -> Any:
    """The index of tasks. The harness's own tasks, thousands of files that take seconds to read, only where needed."""
    from lm_eval.tasks import TaskManager

    class Tasks(TaskManager):
        """Report a task that does not load: its YAML, its data and its code are the user's."""

        def load(self, task_list: Any) -> Any:
            try:
                return super().load(task_list)
            except (*MISTAKES, yaml.YAMLError) as error:
                reason = f"{type(error).__name__}: {first_line(error)}"
                offline = "" if os.environ.get(OFFLINE[0]) != "1" else "; its data may need --download"
                raise InputError(f"--tasks {','.join(task_list)}: does not load: {reason}{offline}") from error

    if include_path is not None:
        own = Tasks(include_path=include_path, include_defaults=False)
        if set(tasks) <= set(own.all_subtasks):  # a group may hold tasks of the harness
            return own
    return Tasks(include_path=include_path)


def _language_model(folder: Path, model: Path, tokenizer: str | None, batch_size: int) -> Any:
    from lm_eval.models.huggingface import HFLM

    from megatron_kd.evaluation.as_huggingface import default_device

    try:
        return HFLM(
            pretrained=str(folder),
            tokenizer=tokenizer,
            dtype="auto",
            batch_size=batch_size,
            device=default_device(),
            trust_remote_code=False,
            use_safetensors=True,
        )
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise InputError(f"{model}: does not load: {first_line(error)}") from error
