"""The model that a Hugging Face `config.json` describes, as fields of a provider. Nothing here needs torch.

The supported families are those that megatron-core computes exactly. A value in the file that megatron-core would
compute differently is refused by name.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_kd.config.gpt_model import GPTModelProvider
from megatron_kd.errors import ConfigError

CONFIG_FILE = "config.json"

# Scaling of the rotary frequencies that megatron-core has no arguments for.
LLAMA3_SCALING = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}

# hidden_act and its name here. Where several names mean one function, the first is the one that export writes.
ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "relu": "relu",
}

_SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
_COMMON: dict[str, Any] = {
    "num_key_value_heads": None,
    "head_dim": None,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "rope_scaling": None,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
    "sliding_window": None,
    "layer_types": None,
    "partial_rotary_factor": 1.0,
    "quantization_config": None,
}


@dataclass(frozen=True)
class Family:
    """A model family.

    Attributes:
        model_class: of `transformers`, with a language-modelling head.
        defaults: of `transformers` for keys that are absent.
        qkv_bias, qk_norm: whether its modelling code has them built in.
    """

    model_class: str
    defaults: dict[str, Any]
    qkv_bias: bool = False
    qk_norm: bool = False


FAMILIES = {
    "llama": Family("LlamaForCausalLM", {"max_position_embeddings": 2048}),
    "mistral": Family("MistralForCausalLM", {"num_key_value_heads": 8, "sliding_window": 4096,
                                             "max_position_embeddings": 131072}),
    "qwen2": Family("Qwen2ForCausalLM", {"num_key_value_heads": 32, "max_position_embeddings": 32768,
                                         "use_sliding_window": False, "sliding_window": 4096,
                                         "max_window_layers": 28}, qkv_bias=True),
    "qwen3": Family("Qwen3ForCausalLM", {"num_key_value_heads": 32, "head_dim": 128,
                                         "max_position_embeddings": 32768, "use_sliding_window": False,
                                         "sliding_window": 4096, "max_window_layers": 28}, qk_norm=True),
}  # fmt: skip


@dataclass(frozen=True)
class FolderArchitecture:
    """A model as its `config.json` describes it.

    Attributes:
        fields: of `GPTModelProvider`.
        keys: the key of `config.json` that each of them was read from, for messages.
        window: the most tokens that some layer attends to, which limits the sequence length; None: no limit.
    """

    fields: dict[str, Any]
    keys: dict[str, str]
    window: int | None


def is_huggingface_folder(path: str | Path) -> bool:
    """Whether `path` is a folder with a `config.json`."""
    return (Path(path) / CONFIG_FILE).is_file()


def read_architecture(folder: str | Path) -> FolderArchitecture:
    """The architecture in a folder's `config.json`.

    Raises:
        ConfigError: not a folder, no such file, or an unsupported model; every reason at once.
    """
    values = _read_json(Path(folder))
    model_type = values.get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise ConfigError([f"model_type={model_type!r} is not supported; supported are {', '.join(FAMILIES)}"])
    family = FAMILIES[model_type]
    values = {**_COMMON, **family.defaults, **values}
    if isinstance(values.get("rope_parameters"), dict):  # what transformers 5 writes
        values["rope_scaling"] = values["rope_parameters"]
        values["rope_theta"] = values["rope_parameters"].get("rope_theta", values["rope_theta"])
    if wrong := [*_wrong_sizes(values), *_not_served(values)]:
        raise ConfigError(wrong)
    fields = {field: value for field, (_, value) in _fields(values, family).items()}
    keys = {field: key for field, (key, _) in _fields(values, family).items()}
    return FolderArchitecture(fields, keys, _window(values))


def provider_from_hf(folder: str | Path, **overrides: Any) -> GPTModelProvider:
    """The model in a Hugging Face folder, its weights included, as a provider.

    Args:
        folder: with `config.json` and safetensors.
        overrides: other fields of the provider, such as `seq_length` and the parallel layout.

    Raises:
        ConfigError: as `read_architecture`.
    """
    try:
        fields = read_architecture(folder).fields
    except ConfigError as error:
        raise ConfigError([f"{folder}: {problem}" for problem in error.lines]) from error
    return GPTModelProvider(**{**fields, "hf_path": str(folder), **overrides})


def _read_json(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG_FILE
    if not folder.is_dir():
        raise ConfigError(["there is no such folder"])
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError([f"there is no {CONFIG_FILE} in this folder, so it is not a Hugging Face model"]) from error
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError([f"{CONFIG_FILE} cannot be read ({error}); copy it again"]) from error
    if not isinstance(values, dict):
        raise ConfigError([f"{CONFIG_FILE} does not hold an object; copy it again"])
    return values


def _wrong_sizes(values: dict[str, Any]) -> Iterator[str]:
    counts = {key: values.get(key) for key in (*_SIZES, "max_position_embeddings")}
    counts |= {key: values[key] for key in ("num_key_value_heads", "head_dim") if values[key] is not None}
    for key, value in counts.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            yield f"{CONFIG_FILE}: {key}={value!r} must be a whole number greater than 0; copy the file again"
    for key in ("rms_norm_eps", "rope_theta"):
        if not isinstance(values[key], int | float) or not values[key] > 0:
            yield f"{CONFIG_FILE}: {key}={values[key]!r} must be a number greater than 0; copy the file again"


def _not_served(values: dict[str, Any]) -> Iterator[str]:
    """The values that megatron-core would compute differently."""
    heads = values.get("architectures")
    if heads and not any(str(name).endswith("ForCausalLM") for name in heads):
        yield f"architectures={heads} is not a language model with a head; use one that ends in ForCausalLM"
    if values["quantization_config"] is not None:
        yield "quantization_config: quantised weights are not read; use the folder of the unquantised model"
    if values["hidden_act"] not in ACTIVATIONS:
        yield f"hidden_act={values['hidden_act']!r} is not supported; supported are {', '.join(ACTIVATIONS)}"
    if bool(values["attention_bias"]) != bool(values["mlp_bias"]):
        yield (
            f"attention_bias={values['attention_bias']}, mlp_bias={values['mlp_bias']}: megatron-core has a bias in "
            "both blocks or in neither; this model is not supported"
        )
    if values["partial_rotary_factor"] != 1.0:
        yield f"partial_rotary_factor={values['partial_rotary_factor']} is not supported, only 1.0"
    yield from _rope_not_served(values["rope_scaling"])


def _rope_not_served(scaling: Any) -> Iterator[str]:
    kind = _rope_type(scaling)
    if kind not in ("default", "llama3"):
        yield f"rope_scaling of type {kind!r} is not supported; supported are llama3 and none"
    elif kind == "llama3":
        for key, value in LLAMA3_SCALING.items():
            if scaling.get(key) != value:
                yield f"rope_scaling.{key}={scaling.get(key)!r}: megatron-core computes with {value} only"
        if not isinstance(scaling.get("factor"), int | float) or not scaling["factor"] > 0:
            yield f"rope_scaling.factor={scaling.get('factor')!r} must be a number greater than 0"


def _rope_type(scaling: Any) -> str:
    if not isinstance(scaling, dict):
        return "default" if scaling is None else str(scaling)
    return str(scaling.get("rope_type", scaling.get("type", "default")))


def _window(values: dict[str, Any]) -> int | None:
    """The most tokens that some layer attends to; None where all layers attend to all earlier tokens."""
    window = values["sliding_window"] if values.get("use_sliding_window", True) else None
    if values["layer_types"] is not None:
        return window if "sliding_attention" in values["layer_types"] else None
    first = values.get("max_window_layers", 0)  # Qwen's windows begin at this layer
    return window if first < values["num_hidden_layers"] else None


def _fields(values: dict[str, Any], family: Family) -> dict[str, tuple[str, Any]]:
    """Fields of a provider, each with the key it comes from and its value."""
    scaled = _rope_type(values["rope_scaling"]) == "llama3"
    return {
        "num_layers": ("num_hidden_layers", values["num_hidden_layers"]),
        "hidden_size": ("hidden_size", values["hidden_size"]),
        "ffn_hidden_size": ("intermediate_size", values["intermediate_size"]),
        "num_attention_heads": ("num_attention_heads", values["num_attention_heads"]),
        "num_query_groups": ("num_key_value_heads", values["num_key_value_heads"] or values["num_attention_heads"]),
        "kv_channels": ("head_dim", values["head_dim"]),
        "vocab_size": ("vocab_size", values["vocab_size"]),
        "share_embeddings_and_output_weights": ("tie_word_embeddings", bool(values["tie_word_embeddings"])),
        "normalization": ("model_type", "RMSNorm"),
        "layernorm_epsilon": ("rms_norm_eps", float(values["rms_norm_eps"])),
        "gated_linear_unit": ("model_type", True),
        "activation_func": ("hidden_act", ACTIVATIONS[values["hidden_act"]]),
        "add_bias_linear": ("attention_bias", bool(values["attention_bias"])),
        "add_qkv_bias": ("model_type", family.qkv_bias),
        "qk_layernorm": ("model_type", family.qk_norm),
        "position_embedding_type": ("model_type", "rope"),
        "rotary_base": ("rope_theta", float(values["rope_theta"])),
        "rotary_percent": ("partial_rotary_factor", 1.0),
        "rope_scaling": ("rope_scaling", scaled),
        "rope_scaling_factor": ("rope_scaling", float(values["rope_scaling"]["factor"]) if scaled else 8.0),
        "max_position_embeddings": ("max_position_embeddings", values["max_position_embeddings"]),
    }
