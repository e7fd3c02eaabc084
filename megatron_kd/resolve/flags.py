"""The flags of a recipe's command line: other names for fields, as `--name value` or `--name=value`.

    torchrun --nproc_per_node=2 recipes/tiny/distill_tiny.py --data_path prompts.txt --batch_size 2 --num_epochs 3

One table, `FLAGS`: it is what is accepted, what `--help` prints and what the guide lists. To add a flag, add a row to
it, and one to the guide. A flag sets fields and nothing else; what is wrong with a value is the fields' own business.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from megatron_kd.config.problem import Origin, Problem, Setting
from megatron_kd.config.text_files import is_text_file
from megatron_kd.config.values import FieldPath, dotted, show
from megatron_kd.errors import ConfigError
from megatron_kd.huggingface.architecture import is_huggingface_folder
from megatron_kd.placement.registry import CHOICES
from megatron_kd.resolve.edits import Edit

# Options that do not set fields. `joined` has to know that they take a value.
CONFIG_FILE = "--config-file"
_OPTIONS = (CONFIG_FILE, "--world-size")
HELP = ("-h", "--help")
COMMAND_LINE = Origin("command line")


@dataclass(frozen=True)
class Flag:
    """One flag.

    Attributes:
        name: with its dashes.
        value: what stands for its value in the help; None for a flag without one.
        sets: the fields it sets, in words.
        meaning: one line for users.
        values: from the flag's text to field values by dotted name, or by section where the value is a mapping.
    """

    name: str
    value: str | None
    sets: str
    meaning: str
    values: Callable[[str], dict[str, Any]]

    @property
    def usage(self) -> str:
        """The flag as users write it."""
        return f"{self.name} {self.value}" if self.value else self.name


def _number(text: str) -> Any:
    """The number that `text` is, else the text, of which the field then says what is wrong."""
    if re.fullmatch(r"[-+]?\d{1,18}", text):
        return int(text)
    return float(text) if re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?", text.lower()) else text


def _field(name: str, convert: Callable[[str], Any] = str) -> Callable[[str], dict[str, Any]]:
    return lambda text: {name: convert(text)}


def _fixed(**values: Any) -> Callable[[str], dict[str, Any]]:
    return lambda _: {name.replace("__", "."): value for name, value in values.items()}


def _data(path: str) -> dict[str, Any]:
    """All the data comes from `path`: what the recipe says about its own is unset."""
    others = dict.fromkeys((f"dataset.{split}_data_path" for split in ("train", "valid", "test")), None)
    text, prefixes = (path, None) if is_text_file(path) else (None, [path])
    return {"dataset.text_path": text, "dataset.data_path": prefixes, **others, "dataset.mock": False}


def _teacher(path: str) -> dict[str, Any]:
    """The teacher's weights come from `path`, whichever kind of folder it is."""
    fields = "model.teacher.hf_path", "model.teacher.checkpoint"
    here, other = fields if is_huggingface_folder(os.path.expanduser(path)) else fields[::-1]
    return {here: path, other: None, "model.teacher.init": None}


def _student(path: str) -> dict[str, Any]:
    return {"model": _json_object(path)}


_STRATEGY = "model.teacher_device_strategy"

FLAGS = (
    Flag("--teacher_path", "DIR", "`model.teacher.checkpoint` or `model.teacher.hf_path`; `model.teacher.init=null`",
         "the teacher's weights: a checkpoint, `checkpoints` or run folder of megatron_kd, or a Hugging Face folder",
         _teacher),
    Flag("--teacher_device_strategy", "NAME", f"`{_STRATEGY}`",
         f"where the teacher lives: {', '.join(CHOICES[:-1])} or {CHOICES[-1]}", _field(_STRATEGY)),
    Flag("--teacher_on_cpu", None, f"`{_STRATEGY}=cpu`", "keep the teacher in host memory",
         _fixed(model__teacher_device_strategy="cpu")),
    Flag("--balance_teacher", None, f"`{_STRATEGY}=balanced`", "spread the teacher over all ranks",
         _fixed(model__teacher_device_strategy="balanced")),
    Flag("--share_teacher", None, "`model.share_teacher=true`", "one copy per machine of a teacher in host memory",
         _fixed(model__share_teacher=True)),
    Flag("--teacher_rank", "N", "`model.teacher_rank`", "the rank that holds the teacher under gpu0",
         _field("model.teacher_rank", _number)),
    Flag("--teacher_dtype", "NAME", "`model.teacher_dtype`", "the teacher's precision: float32, bfloat16 or float16",
         _field("model.teacher_dtype")),
    Flag("--gradient_checkpointing", None,
         "`model.recompute_granularity=full`, `model.recompute_method=uniform`, `model.recompute_num_layers=1`",
         "recompute the student's activations in the backward pass, layer by layer",
         _fixed(model__recompute_granularity="full", model__recompute_method="uniform", model__recompute_num_layers=1)),
    Flag("--student_config", "FILE.json", "fields of `model`",
         "an object of the student's fields, such as `{\"num_layers\": 4}`; the others stay", _student),
    Flag("--data_path", "FILE.txt, FILE.jsonl or PREFIX",
         "`dataset.text_path`, or `dataset.data_path` for tokenised files; all other data is unset",
         "all the data: text to be tokenised into the run's folder, or the prefix of tokenised files", _data),
    Flag("--output_dir", "DIR", "`logger.run_dir`", "the folder of the run", _field("logger.run_dir")),
    Flag("--batch_size", "N", "`train.micro_batch_size`; `train.global_batch_size=null`",
         "sequences of a micro-batch; the global batch is that times the data-parallel ranks",
         lambda text: {"train.micro_batch_size": _number(text), "train.global_batch_size": None}),
    Flag("--num_epochs", "N", "`train.num_epochs`; `train.train_iters=null`",
         "how many times to read the training split; may be a fraction",
         lambda text: {"train.num_epochs": _number(text), "train.train_iters": None}),
    Flag("--distributed", None, "nothing", "accepted for other scripts' sake: torchrun says how many ranks there are",
         _fixed()),
)  # fmt: skip

_BY_NAME = {flag.name: flag for flag in FLAGS}


def joined(argv: Sequence[str]) -> list[str]:
    """`argv` with every flag and its value in one word, `--name=value`, and with underscores in its name.

    A flag whose value is missing stays alone.
    """
    words: list[str] = []
    remaining = list(argv)
    while remaining:
        word = _with_known_name(remaining.pop(0))
        takes_value = word in _OPTIONS or (word in _BY_NAME and _BY_NAME[word].value is not None)
        if takes_value and remaining and not remaining[0].startswith("--"):
            word = f"{word}={remaining.pop(0)}"
        words.append(word)
    return words


def _with_known_name(word: str) -> str:
    """`--teacher-rank=1` as `--teacher_rank=1`, and `--config_file` as `--config-file`; other words as they are."""
    name, *value = word.split("=", 1) if word.startswith("--") else [word]
    for known in (*_BY_NAME, *_OPTIONS):
        if name.replace("-", "_") == known.replace("-", "_"):
            return "=".join([known, *value])
    return word


def is_flag(word: str) -> bool:
    """Whether a word of `joined` is one of `FLAGS`."""
    return word.partition("=")[0] in _BY_NAME


def flag_edits(word: str) -> tuple[list[Edit], Problem | None]:
    """The edits that a word of `joined` asks for, and what is wrong with it.

    The origin of each edit is the flag as it was given, which problems of the fields that it sets then name.
    """
    name, has_value, text = word.partition("=")
    flag = _BY_NAME[name]
    if flag.value is None and has_value:
        return [], Problem((Setting(word, origin=COMMAND_LINE.name),), "takes no value", f"write {name}")
    if flag.value is not None and not text:
        return [], Problem((Setting(name, origin=COMMAND_LINE.name),), "needs a value", f"write {flag.usage}")
    origin = Origin(f"{name} {text}".rstrip())
    try:
        values = flag.values(text)
    except ConfigError as error:
        return [], Problem((), f"{name} {error}")
    return [Edit(tuple(field.split(".")), value, origin) for field, value in values.items()], None


def contradictions(edits: Sequence[Edit]) -> list[Problem]:
    """A problem for each two flags that set one field to different values; `edits` are those of flags alone.

    Repeating a flag is allowed: the last one wins, as with overrides.
    """
    found: list[Problem] = []
    first: dict[FieldPath, Edit] = {}
    for edit in edits:
        other = first.setdefault(edit.path, edit)
        flags = other.origin.name, edit.origin.name
        if flags[0].partition(" ")[0] == flags[1].partition(" ")[0]:
            first[edit.path] = edit
        elif other.value != edit.value:
            values = f"{show(other.value)} and {show(edit.value)}"
            why = f"contradict each other ({dotted(edit.path)}: {values})"
            settings = tuple(Setting(flag, origin=COMMAND_LINE.name) for flag in flags)
            found.append(Problem(settings, why, "keep one of the two"))
    return found


def flags_help() -> str:
    """The flags, a line of usage and a line of meaning for each."""
    return "".join(f"  {flag.usage}\n      {flag.meaning} ({flag.sets.replace('`', '')})\n" for flag in FLAGS)


def _json_object(path: str) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        ConfigError: a file that cannot be read, is not JSON, holds something else, or a key twice.
    """
    try:
        with open(os.path.expanduser(path), encoding="utf-8-sig") as file:
            value = json.load(file, object_pairs_hook=_without_repetitions, parse_constant=_refuse_constant)
    except OSError as error:
        raise ConfigError([f"{path}: cannot be read: {error.strerror or error}"]) from error
    except UnicodeDecodeError as error:
        raise ConfigError([f"{path}: is not UTF-8 text: {error.reason} at byte {error.start}"]) from error
    except json.JSONDecodeError as error:
        raise ConfigError([f"{path}:{error.lineno}: is not valid JSON: {error.msg}"]) from error
    except (ValueError, RecursionError) as error:
        raise ConfigError([f"{path}: is not valid JSON: {error}"]) from error
    if not isinstance(value, dict):
        raise ConfigError([f'{path}: must hold one object of model fields, such as {{"num_layers": 4}}'])
    return value


def _without_repetitions(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{name} is given twice; keep one of the two")
    return dict(pairs)


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")
