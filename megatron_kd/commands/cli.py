"""The console command `megatron-kd`.

    megatron-kd validate recipes/tiny/distill_tiny.py --world-size 2 --batch_size 4 model.num_layers=1
    megatron-kd plan recipes/tiny/distill_tiny.py --gpus 2 --memory 16GB model.vocab_size=2048
    megatron-kd launch --local recipes/tiny/distill_tiny.py --nproc 2 train.train_iters=100
    megatron-kd ls
    megatron-kd cp distill_llama32_3b-1b my_runs
    megatron-kd import-hf models/llama --output checkpoints/llama
    megatron-kd export-hf runs/tiny/distilled --output models/student
    megatron-kd prune checkpoints/llama --output checkpoints/half --hidden-size 2048 --data data/corpus
    megatron-kd evaluate runs/tiny/distilled
    megatron-kd generate --student runs/tiny/distilled --teacher runs/tiny/teacher --prompt "def main("
    megatron-kd lm-eval --model runs/tiny/distilled --tasks my_task --include-path tasks
    megatron-kd preprocess --input corpus.jsonl --output-prefix data/corpus --tokenizer data/tokenizer

Nothing here imports torch: a command that needs it imports its own module when it is called.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from megatron_kd.config.run_config import dump_config
from megatron_kd.errors import ConfigError, MegatronKDError
from megatron_kd.messages import tell_as_rank
from megatron_kd.resolve.configuration import load_config
from megatron_kd.resolve.flags import flags_help, joined
from megatron_kd.resolve.recipe_files import list_recipes, load_recipe, recipes_folder

# Commands with a module of their own, which has `add_arguments(parser)` and `run(args) -> int`; those that take
# overrides are given them as a second argument.
_MODULES = {
    "launch": ("megatron_kd.commands.launch", "start a recipe's ranks on this machine or as a SLURM job"),
    "cp": ("megatron_kd.commands.cp", "copy a recipe, with what it shares with others, to change it"),
    "plan": ("megatron_kd.commands.plan", "estimate memory, work and traffic for each place of the teacher"),
    "import-hf": ("megatron_kd.commands.import_hf", "make a checkpoint of a Hugging Face folder"),
    "export-hf": ("megatron_kd.commands.export_hf", "make a Hugging Face folder of a checkpoint"),
    "prune": ("megatron_kd.commands.prune", "make a student by pruning a teacher in depth and width"),
    "evaluate": ("megatron_kd.commands.evaluate", "perplexity, and agreement with a teacher, of any checkpoint"),
    "generate": ("megatron_kd.commands.generate", "show what teacher and student answer, side by side"),
    "lm-eval": ("megatron_kd.evaluation.harness", "run tasks of EleutherAI's evaluation harness"),
    "preprocess": ("megatron_kd.data.preprocessing.preprocess", "turn text into tokenised .bin/.idx files"),
}
_WITH_OVERRIDES = ("validate", "launch", "plan", "evaluate")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command in `argv` (default: the process's own).

    Returns:
        The exit code: 0, or that of the error, which is told in plain lines on stderr.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv[:1] and argv[0] in _WITH_OVERRIDES:
        argv = joined(argv)  # or else argparse would take the value of a flag for the recipe
    parser = _parser(command=next((word for word in argv if not word.startswith("-")), None))
    args, rest = parser.parse_known_args(argv)
    if rest and args.command not in _WITH_OVERRIDES:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    try:
        if args.command == "validate":
            return _validate(args, rest)
        if args.command == "ls":
            return _ls()
        module = importlib.import_module(_MODULES[args.command][0])
        code: int = module.run(args, rest) if args.command in _WITH_OVERRIDES else module.run(args)
        return code
    except MegatronKDError as error:
        tell_as_rank(error)
        return error.exit_code


def _parser(command: str | None) -> argparse.ArgumentParser:
    """The parser, with the arguments of `command` alone where they come from a module that is slow to import."""
    parser = argparse.ArgumentParser(prog="megatron-kd", description="Knowledge distillation on Megatron-core.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    validate = commands.add_parser(
        "validate",
        allow_abbrev=False,
        help="check a recipe with its overrides and print the resolved configuration",
        usage="megatron-kd validate RECIPE [--config-file FILE] [--world-size N] [FLAG ...] [section.field=value ...]",
        epilog=f"the flags of a recipe's command line:\n\n{flags_help()}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    validate.add_argument("recipe", metavar="RECIPE", help="the name or path of a recipe, such as `ls` lists")
    validate.add_argument("--config-file", action="append", default=[], metavar="FILE", help="YAML over the recipe")
    validate.add_argument("--world-size", type=int, metavar="N", help="ranks (WORLD_SIZE, else unknown)")
    commands.add_parser("ls", help="list the recipes")
    for name, (module, summary) in _MODULES.items():
        subparser = commands.add_parser(name, help=summary, allow_abbrev=False)
        if name == command:
            importlib.import_module(module).add_arguments(subparser)
    return parser


def _validate(args: argparse.Namespace, overrides: Sequence[str]) -> int:
    if args.world_size is not None and args.world_size < 1:
        raise ConfigError([f"--world-size {args.world_size}: must be 1 or more"])
    files = [word for name in args.config_file for word in ("--config-file", name)]
    print(dump_config(load_config(load_recipe(args.recipe), [*files, *overrides], args.world_size)), end="")
    return 0


def _ls() -> int:
    recipes = list_recipes(recipes_folder())
    width = max((len(str(path)) for path, _ in recipes), default=0)
    for path, summary in recipes:
        print(f"{path!s:<{width}}  {summary}".rstrip())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
