"""Values that cannot be in a `config.json`, whatever the model: another kind than the key has, or out of range."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from megatron_kd.huggingface.other_folders import CONFIG_FILE

_FLAGS = ("tie_word_embeddings", "attention_bias", "mlp_bias", "use_sliding_window")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_names(value: Any) -> bool:
    return value is None or (isinstance(value, list) and all(isinstance(name, str) for name in value))


# Whether a value may be there at all, and in which words; a key that a family does not have is None.
_KINDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "architectures": (_is_names, "a list of names"),
    "layer_types": (_is_names, "a list of names"),
    "hidden_act": (lambda value: isinstance(value, str), "a name"),
    "rms_norm_eps": (lambda value: _is_number(value) and value > 0, "a number greater than 0"),
    "attention_dropout": (lambda value: _is_number(value) and 0 <= value < 1, "a number from 0 to below 1"),
    "sliding_window": (lambda value: isinstance(value, int | None), "a whole number or null"),
    "max_window_layers": (lambda value: isinstance(value, int | None), "a whole number"),
    **{key: (lambda value: isinstance(value, bool | None), "true or false") for key in _FLAGS},
}


def wrong_values(values: dict[str, Any], sizes: Sequence[str]) -> Iterator[str]:
    """A line for each such value.

    Args:
        values: of a `config.json`, with the defaults of its family.
        sizes: the keys that must be whole numbers greater than 0.
    """
    counts = {key: values.get(key) for key in sizes}
    counts |= {key: values[key] for key in ("num_key_value_heads", "head_dim") if values[key] is not None}
    for key, value in counts.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            yield f"{CONFIG_FILE}: {key}={value!r} must be a whole number greater than 0; copy the file again"
    for key, (is_right, what) in _KINDS.items():
        if not is_right(value := values.get(key)):
            yield f"{CONFIG_FILE}: {key}={value!r} must be {what}; copy the file again"
