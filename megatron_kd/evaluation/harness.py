"""`megatron-kd lm-eval`: EleutherAI's evaluation harness on a checkpoint or a Hugging Face folder.

    megatron-kd lm-eval --model runs/tiny/distilled --tasks my_task --include-path tasks --output result.json
    megatron-kd lm-eval --model models/student --tasks hellaswag,arc_easy --download

A task is a YAML file. Tasks of `--include-path` win over the harness's own of the same name.
"""

from __future__ import annotations

import argparse
import importlib.util
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from megatron_kd.errors import ConfigError, InputError
from megatron_kd.evaluation.report import output_problems, write_json
from megatron_kd.evaluation.saved_model import SavedModel, saved_model
from megatron_kd.messages import first_line, quieten_libraries
from megatron_kd.resolve.recipe_files import MISTAKES

_OFFLINE = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")
_KEPT = ("results", "groups", "versions", "n-shot", "n-samples", "higher_is_better")
_EPILOG = (
    "A task's YAML may name Python functions of its folder (!function), which are then run: name folders in "
    "--include-path whose code you trust. Code that comes with models or data sets is never run, nor are tasks "
    "that the harness marks as unsafe. Without --download nothing is fetched: data sets are local or in the cache."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.epilog = _EPILOG
    parser.add_argument("--model", required=True, metavar="DIR", help="a run, checkpoint or Hugging Face folder")
    parser.add_argument("--tasks", required=True, metavar="NAME[,NAME]", help="of the harness or of --include-path")
    parser.add_argument("--include-path", metavar="DIR", help="a folder with tasks of your own, whose code may be run")
    parser.add_argument("--limit", type=int, metavar="N", help="samples of each task (all)")
    parser.add_argument("--num-fewshot", type=int, metavar="N", help="worked samples before each (the task's)")
    parser.add_argument("--batch-size", type=int, default=8, metavar="N", help="requests at a time (8)")
    parser.add_argument("--chat", action="store_true", help="put requests into the tokenizer's chat template")
    parser.add_argument("--tokenizer", metavar="DIR", help="of the model (its own)")
    parser.add_argument("--download", action="store_true", help="let the data sets of tasks be fetched")
    parser.add_argument("--output", metavar="FILE", help="where to write the results as JSON too")


def run(args: argparse.Namespace) -> int:
    """Run the tasks, print the harness's table, and return the exit code.

    Raises:
        ConfigError: arguments that cannot be, all at once.
        InputError: a model that does not load, or a task that there is not or that does not load.
    """
    quieten_libraries()
    if wrong := list(_problems(args)):
        raise ConfigError(wrong)
    model = saved_model(args.model, "--model")
    if not args.download:
        os.environ.update(dict.fromkeys(_OFFLINE, "1"))  # read when the libraries are imported
    results = evaluate_tasks(
        model,
        args.tasks.split(","),
        include_path=args.include_path,
        tokenizer=args.tokenizer,
        limit=args.limit,
        num_fewshot=args.num_fewshot,
        batch_size=args.batch_size,
        apply_chat_template=args.chat,
    )
    from lm_eval.utils import make_table

    print(make_table(results))
    if args.output is not None:
        kept = {name: results[name] for name in _KEPT if name in results}
        write_json({"model": str(model.folder), "limit": args.limit, **kept}, args.output)
    return 0


def evaluate_tasks(
    model: SavedModel,
    tasks: list[str],
    *,
    include_path: str | None = None,
    tokenizer: str | None = None,
    batch_size: int = 8,
    **options: Any,
) -> dict[str, Any]:
    """What the harness's `simple_evaluate` returns for a model on disk, without samples.

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
    """What knows the tasks; of the harness's own, whose thousands of files take seconds to read, only where needed."""
    from lm_eval.tasks import TaskManager

    class Tasks(TaskManager):
        """Tells of a task that does not load: its YAML, its data and its code are the user's."""

        def load(self, task_list: Any) -> Any:
            try:
                return super().load(task_list)
            except (*MISTAKES, yaml.YAMLError) as error:
                reason = f"{type(error).__name__}: {first_line(error)}"
                offline = "" if os.environ.get(_OFFLINE[0]) != "1" else "; its data may need --download"
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


def _problems(args: argparse.Namespace) -> Iterator[str]:
    if importlib.util.find_spec("lm_eval") is None:
        yield "lm_eval, EleutherAI's harness, is not installed; pip install megatron_kd[eval]"
    for name, least in (("limit", 1), ("num_fewshot", 0), ("batch_size", 1)):
        value = getattr(args, name)
        if value is not None and value < least:
            yield f"--{name.replace('_', '-')} {value}: must be {least} or more"
    if "" in args.tasks.split(","):
        yield f"--tasks {args.tasks!r}: names an empty task; write NAME or NAME,NAME"
    if args.include_path is not None and not Path(args.include_path).is_dir():
        yield f"--include-path {args.include_path}: there is no such folder"
    yield from output_problems(args.output)
