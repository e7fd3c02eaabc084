"""Unknown keys in the configuration of a run: why there is no such field, or which one was meant."""

from __future__ import annotations

import re
from dataclasses import fields

from megatron_kd.config.gpt_distillation import GPTDistillationProvider
from megatron_kd.config.gpt_model import GPTModelProvider
from megatron_kd.config.problem import Problem, Setting
from megatron_kd.config.schema import Schema, unknown_key
from megatron_kd.config.values import FieldPath, dotted

_STATE_SPACE = re.compile(r"(mamba|hybrid|is_hybrid)(_|$)")
_OF_DISTILLATION = {f.name for f in fields(GPTDistillationProvider)} - {f.name for f in fields(GPTModelProvider)}


def why_unknown(path: FieldPath, schema: Schema) -> Problem:
    """The problem of a key that is not in a run's `schema`."""
    key = (Setting(dotted(path)),)
    if any(_STATE_SPACE.match(part) for part in path):
        why = (
            "Mamba and hybrid models are not supported: only GPT models are built here, since the layer specs have no "
            "state-space layer"
        )
        return Problem(key, why, "leave this key out and use a GPT model")
    has_teacher = ("model", "teacher") in schema.sections
    if path[:1] == ("model",) and path[1:2] and path[1] in _OF_DISTILLATION and not has_teacher:
        why = f"this recipe's model has no teacher (it is a {schema.sections[('model',)].__name__})"
        return Problem(key, why, "use a distillation recipe, whose model is a GPTDistillationProvider")
    return unknown_key(path, schema)
