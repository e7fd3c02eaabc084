"""The chat template that training data was made with, by its sidecars. No torch."""

from __future__ import annotations

from collections.abc import Iterator

from megatron_kd.config.blend import parse_blend
from megatron_kd.config.problem import Problem
from megatron_kd.config.sections import DatasetConfig
from megatron_kd.data.tokens.sidecar import recorded_templates


def trained_template(data: DatasetConfig) -> str | None:
    """The template of the conversations of a run; None for text, and where the files do not say.

    Conversations that the run itself tokenises have the template of its tokenizer.
    """
    return next(iter(recorded_templates(list(training_prefixes(data))).values()), None) if data.chat else None


def differing(data: DatasetConfig) -> tuple[str, str] | None:
    """Two prefixes whose conversations were made with different templates; None if all agree, or do not say."""
    found = recorded_templates(list(training_prefixes(data)))
    first = next(iter(found), "")
    return next(((first, prefix) for prefix, template in found.items() if template != found[first]), None)


def training_prefixes(data: DatasetConfig) -> Iterator[str]:
    """The files that the training split is read from, as far as the configuration is right."""
    for name in ("data_path", "train_data_path"):
        items = getattr(data, name)
        blend = None if items is None else parse_blend(items, name)
        if blend is not None and not isinstance(blend, Problem):
            yield from blend.prefixes
