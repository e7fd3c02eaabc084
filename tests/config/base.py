"""A configuration without problems, and ways to change it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from megatron_kd.checks import problems
from megatron_kd.config.container import ConfigContainer
from megatron_kd.config.gpt_model import GPTModelProvider
from megatron_kd.config.sections import DatasetConfig
from megatron_kd.resolve.recipe_files import load_recipe

RECIPE = Path(__file__).parent / "recipes" / "distill_small-1b.py"

# The example of the user's documents, as it stands there.
DOCUMENTED_YAML = """\
logit_layers: ["output_layer", "output_layer"]
intermediate_layer_pairs:
  - ["decoder.final_layernorm", "decoder.final_layernorm"]
logit_kl_temperature: 2.0
"""


def distillation(**edits: Any) -> ConfigContainer:
    """A distillation that has no problems, with `edits`: dotted names, dots written as `__`."""
    return edited(load_recipe(RECIPE)(), {name.replace("__", "."): value for name, value in edits.items()})


def plain(**edits: Any) -> ConfigContainer:
    """A training run without a teacher that has no problems, with `edits` as above."""
    config = ConfigContainer(model=GPTModelProvider(vocab_size=1000, init="random"), dataset=DatasetConfig(mock=True))
    return edited(config, {name.replace("__", "."): value for name, value in edits.items()})


def lines_of(config: ConfigContainer, world_size: int | None = None, tokenizer_ids: int | None = None) -> list[str]:
    """The problems of a configuration as users read them, without the origins of its values."""
    return [str(problem) for problem in problems(config, world_size, tokenizer_ids)]


def edited(config: ConfigContainer, edits: dict[str, Any]) -> ConfigContainer:
    """Set fields by their dotted names, in place."""
    for name, value in edits.items():
        *sections, last = name.split(".")
        section: Any = config
        for part in sections:
            section = getattr(section, part)
        assert hasattr(section, last), name
        setattr(section, last, value)
    return config
