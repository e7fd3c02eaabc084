"""`megatron-kd generate`: what a student answers, beside its teacher.

    megatron-kd generate --student runs/tiny/distilled --teacher runs/tiny/teacher --prompt "import "

Both may be checkpoints or Hugging Face folders.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Sequence

from megatron_kd.commands.arguments import path, too_small
from megatron_kd.errors import ConfigError
from megatron_kd.evaluation.saved_model import saved_model

SUMMARY = "show what teacher and student answer, side by side"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("--prompt", action="append", required=True, metavar="TEXT", help="may be given several times")
    parser.add_argument(
        "--student", required=True, type=path, metavar="DIR", help="a run, checkpoint or Hugging Face folder"
    )
    parser.add_argument(
        "--teacher", type=path, metavar="DIR", help="another, whose answers are shown beside the student's"
    )
    parser.add_argument("--max-new-tokens", type=int, default=64, metavar="N", help="the longest answer (64)")
    parser.add_argument(
        "--temperature", type=float, default=0.0, metavar="T", help="of sampling; 0 takes the most likely token (0)"
    )
    parser.add_argument("--seed", type=int, default=1234, metavar="N", help="of each answer's sampling (1234)")
    parser.add_argument("--chat", action="store_true", help="put prompts into the tokenizer's chat template")
    parser.add_argument("--tokenizer", type=path, metavar="DIR", help="of both models (each one's own)")


def run(args: argparse.Namespace) -> int:
    """Generate and print, and return the exit code.

    Raises:
        ConfigError: arguments that cannot be, all at once.
        InputError: a model or tokenizer that does not load, or a prompt without tokens.
    """
    if wrong := list(_problems(args)):
        raise ConfigError(wrong)
    models = {name: saved_model(path, f"--{name}") for name, path in (("teacher", args.teacher),
                                                                      ("student", args.student)) if path}  # fmt: skip
    from megatron_kd.evaluation.answers import Generation, answers

    generation = Generation(args.max_new_tokens, args.temperature, args.seed, args.chat)
    # One model after the other: memory is that of the larger one.
    given = {name: answers(model, args.prompt, generation, args.tokenizer) for name, model in models.items()}
    show(args.prompt, given)
    return 0


def show(prompts: Sequence[str], given: dict[str, list[str]]) -> None:
    """Print the answers to each prompt side by side, models in the order of `given`."""
    from rich.box import SQUARE
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    for index, prompt in enumerate(prompts):
        console.print(Text(f"prompt: {prompt}"))
        table = Table(*given, box=SQUARE, expand=True)
        for column in table.columns:
            column.ratio = 1
        table.add_row(*(Text(texts[index]) for texts in given.values()))
        console.print(table)


def _problems(args: argparse.Namespace) -> Iterator[str]:
    yield from too_small(args, max_new_tokens=1)
    if not (args.temperature >= 0 and math.isfinite(args.temperature)):
        yield f"--temperature {args.temperature}: must be 0 or greater"
    if not 0 <= args.seed < 2**63:
        yield f"--seed {args.seed}: must be 0 or greater"
