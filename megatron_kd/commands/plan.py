"""`megatron-kd plan`: the cost of each teacher placement, before anything is started.

    megatron-kd plan recipes/llama/distill_llama32_3b-1b.py --gpus 8 --memory 80GB train.micro_batch_size=1

Needs no GPU, no weights, no data and no torch; the tokenizer alone is read, where a model takes its vocabulary.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from megatron_kd.checks import PLAN, problems
from megatron_kd.checks.inputs import tokenizer_size
from megatron_kd.commands.arguments import add_overrides, add_recipe, config_words, too_small
from megatron_kd.config.container import ConfigContainer
from megatron_kd.config.derived import derived, model_parallel_size, vocab_width
from megatron_kd.config.gpt_model import GPTModelProvider
from megatron_kd.config.problem import Problem, Setting
from megatron_kd.errors import ConfigError
from megatron_kd.placement.workload import workload
from megatron_kd.planning.estimate import choose
from megatron_kd.planning.placement_table import plan_text
from megatron_kd.resolve.configuration import merge
from megatron_kd.resolve.recipe_files import load_recipe

SUMMARY = "estimate memory, work and traffic for each teacher placement"
_USAGE = (
    "megatron-kd plan RECIPE [--config-file FILE] [--gpus N] [--memory 80GB] [--gpus-per-machine N] "
    "[--device cuda|cpu] [section.field=value ...]"
)
_UNITS = {"": 1e9, "gb": 1e9, "gib": 2**30, "mb": 1e6, "mib": 2**20, "tb": 1e12, "tib": 2**40}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.usage = _USAGE
    add_recipe(parser)
    add_overrides(parser)
    parser.add_argument("--gpus", type=int, metavar="N", help="ranks (WORLD_SIZE, else one copy of the student)")
    parser.add_argument("--memory", metavar="SIZE", help="of a rank's device, 80GB or 74GiB (dist.device_memory_gb)")
    parser.add_argument("--gpus-per-machine", type=int, default=8, metavar="N", help="ranks of one host (8)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="what ranks compute on (cuda)")


def run(args: argparse.Namespace) -> int:
    """Print the plan, and return the exit code.

    Raises:
        ConfigError: all problems of the arguments and of the configuration, missing weights and data excepted.
    """
    wrong: list[object] = list(_argument_problems(args))
    merged = merge(without_absent_folders(load_recipe(args.recipe)()), config_words(args))
    cfg = merged.config
    world_size = args.gpus or _default_ranks(cfg)
    ids = tokenizer_size(cfg) if vocab_width(cfg) is None else None
    if wrong := [*wrong, *merged.with_problems(plan_problems(cfg, world_size, ids)).problems]:
        raise ConfigError(wrong)
    memory = memory_bytes(args.memory) if args.memory else _configured_memory(cfg)
    planned = workload(cfg, derived(cfg, world_size, ids), ranks_per_machine=args.gpus_per_machine, device=args.device)
    with merged.located():
        choice = choose(planned, memory)
    for note in merged.notes:
        print(note, file=sys.stderr)
    print(plan_text(planned, choice, memory), end="")
    return 0


def without_absent_folders(cfg: ConfigContainer) -> ConfigContainer:
    """`cfg` without Hugging Face folders that are not here, where the recipe gives the sizes too, as presets do."""
    model = _without_absent_folder(cfg.model)
    if cfg.models.teacher is not None:
        model = replace(model, teacher=_without_absent_folder(cfg.models.teacher))
    return replace(cfg, model=model)


def _without_absent_folder(model: Any) -> Any:
    has_sizes = model.hidden_size != GPTModelProvider.hidden_size
    absent = model.hf_path is not None and not os.path.isdir(model.hf_path)
    return replace(model, hf_path=None) if absent and has_sizes else model


def plan_problems(cfg: ConfigContainer, world_size: int, tokenizer_ids: int | None = None) -> Iterator[Problem]:
    """Problems of a configuration under every teacher placement; weights, data and tokenizer may be missing."""
    if cfg.models.teacher is None:
        why = "has no teacher, and only a distillation can be planned"
        yield Problem((Setting("model"),), why, "name a recipe with a GPTDistillationProvider")
        return
    yield from problems(cfg, world_size, tokenizer_ids, groups=PLAN)
    if vocab_width(cfg, tokenizer_ids) is None:
        why = "is unknown, and there is no tokenizer to be read"
        cure = "set model.vocab_size=N, its number of ids"
        yield Problem.of(cfg, "model.vocab_size tokenizer.tokenizer_model", why, cure)


def memory_bytes(text: str) -> float:
    """Bytes of `80GB`, `74.5GiB` or `80` (GB).

    Raises:
        ConfigError: something else.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", text.lower())
    if match is None or match[2] not in _UNITS or float(match[1]) == 0:
        raise ConfigError([f"--memory {text}: must be a size such as 80GB, 74.5GiB or 512MB"])
    return float(match[1]) * _UNITS[match[2]]


def _argument_problems(args: argparse.Namespace) -> Iterator[str]:
    yield from too_small(args, gpus=1, gpus_per_machine=1)
    if args.memory:
        try:
            memory_bytes(args.memory)
        except ConfigError as error:
            yield from error.lines


def _default_ranks(cfg: ConfigContainer) -> int:
    launched = os.environ.get("WORLD_SIZE", "")
    return int(launched) if launched.isdigit() and int(launched) else max(model_parallel_size(cfg), 1)


def _configured_memory(cfg: ConfigContainer) -> float | None:
    return None if cfg.dist.device_memory_gb is None else cfg.dist.device_memory_gb * 1e9
