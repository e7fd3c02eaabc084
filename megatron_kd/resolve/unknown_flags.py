"""Unknown options of a recipe's command line: what they are called here."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from megatron_kd.config.container import ConfigContainer
from megatron_kd.config.gpt_distillation import GPTDistillationProvider
from megatron_kd.config.other_names import instead_of, words_for_option
from megatron_kd.config.other_values import cure_with
from megatron_kd.config.problem import Problem, Setting
from megatron_kd.config.schema import schema_of
from megatron_kd.config.values import dotted
from megatron_kd.resolve.flags import COMMAND_LINE, CONFIG_FILE, FLAGS


def unknown_flag(word: str, values: Sequence[str] = ()) -> Problem:
    """The problem of a word that begins with a dash but is not a flag.

    Args:
        word: `--name` or `--name=value`.
        values: the words after `--name` that may be its values.
    """
    name, equals, text = word.partition("=")
    values = [text] if equals else values
    if words := words_for_option(name) or _field_called(name):
        cure = f"write {words}" if "=" in words else cure_with(words, values)
    elif sentence := instead_of(name):
        cure = sentence
    else:
        near = _nearest(name.replace("-", "_").lstrip("_"))
        cure = f"did you mean {near}? Flags are written out" if near else "--help lists those there are"
        cure += ", and other values are set as section.field=value"
    return Problem((Setting(word, origin=COMMAND_LINE.name),), "unknown option", cure)


def blend(words: Sequence[str]) -> Problem:
    """The problem of several words for `--data_path`, which takes one: Megatron-LM's blends."""
    given = (Setting(" ".join(("--data_path", *words)), origin=COMMAND_LINE.name),)
    return Problem(given, "takes one file or prefix", cure_with("dataset.data_path", words))


def takes_several(word: str) -> bool:
    """Whether an option is followed by any number of words: the paths and weights of a blend."""
    return word.replace("-", "_").endswith(("data_path", "data_prefix", "__blend"))


def _field_called(name: str) -> str | None:
    """The first field with the name of an option, as Megatron-LM's are: `--micro-batch-size`."""
    plain = name.lstrip("-").replace("-", "_")
    leaves = schema_of(ConfigContainer(model=GPTDistillationProvider())).leaves
    return next((dotted(path) for path in leaves if path[-1] == plain), None)


def _nearest(name: str) -> str | None:
    known = {flag.name.lstrip("-"): flag.name for flag in FLAGS} | {"config_file": CONFIG_FILE}
    begun = [full for full in known if len(name) > 2 and full.startswith(name)]
    near = begun or difflib.get_close_matches(name, known, n=1)
    return " or ".join(known[full] for full in near) or None
