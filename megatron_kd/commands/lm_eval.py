"""`megatron-kd lm-eval`: EleutherAI's evaluation harness on a checkpoint or a Hugging Face folder.

    megatron-kd lm-eval --model runs/tiny/distilled --tasks my_task --include-path tasks --output result.json
    megatron-kd lm-eval --model models/student --tasks hellaswag,arc_easy --download

A task is a YAML file. Tasks of `--include-path` win over the harness's own of the same name.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path

from megatron_kd.commands.arguments import path, too_small
from megatron_kd.errors import ConfigError
from megatron_kd.evaluation.harness import OFFLINE, evaluate_tasks
from megatron_kd.evaluation.report import output_problems, write_json
from megatron_kd.evaluation.saved_model import saved_model

SUMMARY = "run tasks of EleutherAI's evaluation harness"
_KEPT = ("results", "groups", "versions", "n-shot", "n-samples", "higher_is_better")
_EPILOG = (
    "A task's YAML may name Python functions of its folder (!function), which are then run: name folders in "
    "--include-path whose code you trust. Code that comes with models or data sets is never run, nor are tasks "
    "that the harness marks as unsafe. Without --download nothing is fetched: data sets are local or in the cache."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.epilog = _EPILOG
    parser.add_argument(
        "--model", required=True, type=path, metavar="DIR", help="a run, checkpoint or Hugging Face folder"
    )
    parser.add_argument("--tasks", required=True, metavar="NAME[,NAME]", help="of the harness or of --include-path")
    parser.add_argument(
        "--include-path", type=path, metavar="DIR", help="a folder with tasks of your own, whose code may be run"
    )
    parser.add_argument("--limit", type=int, metavar="N", help="samples of each task (all)")
    parser.add_argument("--num-fewshot", type=int, metavar="N", help="worked samples before each (the task's)")
    parser.add_argument("--batch-size", type=int, default=8, metavar="N", help="requests at a time (8)")
    parser.add_argument("--chat", action="store_true", help="put requests into the tokenizer's chat template")
    parser.add_argument("--tokenizer", type=path, metavar="DIR", help="of the model (its own)")
    parser.add_argument("--download", action="store_true", help="let the data sets of tasks be fetched")
    parser.add_argument("--output", type=path, metavar="FILE", help="where to write the results as JSON too")


def run(args: argparse.Namespace) -> int:
    """Run the tasks, print the harness's table, and return the exit code.

    Raises:
        ConfigError: arguments that cannot be, all at once.
        InputError: a model that does not load, or a task that there is not or that does not load.
    """
    if wrong := list(_problems(args)):
        raise ConfigError(wrong)
    model = saved_model(args.model, "--model")
    if not args.download:
        os.environ.update(dict.fromkeys(OFFLINE, "1"))  # read when the libraries are imported
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


def _problems(args: argparse.Namespace) -> Iterator[str]:
    if importlib.util.find_spec("lm_eval") is None:
        yield "lm_eval, EleutherAI's harness, is not installed; pip install megatron_kd[eval]"
    yield from too_small(args, limit=1, num_fewshot=0, batch_size=1)
    if "" in args.tasks.split(","):
        yield f"--tasks {args.tasks!r}: names an empty task; write NAME or NAME,NAME"
    if args.include_path is not None and not Path(args.include_path).is_dir():
        yield f"--include-path {args.include_path}: there is no such folder"
    yield from output_problems(args.output)
