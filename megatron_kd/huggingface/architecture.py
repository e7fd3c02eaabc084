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
from megatron_kd.config.hub_names import absent
from megatron_kd.errors import ConfigError
from megatron_kd.huggingface.config_keys import unread_keys
from megatron_kd.huggingface.config_values import wrong_values
from megatron_kd.huggingface.other_folders import CONFIG_FILE, LFS_POINTER, why_no_config
from megatron_kd.huggingface.rope import rope_of, rope_problems

# hidden_act and its name here. Where several names mean one function, the first is the one that export writes.
ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "relu": "relu",
}

_SIZES = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size",
    "max_position_embeddings",
)  # fmt: skip
_WINDOWS = ("use_sliding_window", "sliding_window", "max_window_layers")
_COMMON: dict[str, Any] = {
    "num_key_value_heads": None,
    "head_dim": None,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "rope_scaling": None,
    "rope_parameters": None,
    "partial_rotary_factor": 1.0,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
    "sliding_window": None,
    "layer_types": None,
    "attention_dropout": 0.0,
    "quantization_config": None,
}
_LAYER_TYPES = ("full_attention", "sliding_attention")
# Settings of the training: a run may choose its own.
OF_TRAINING = ("attention_dropout", "max_position_embeddings")


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
    surplus = list(unread_keys(values, {*_SIZES, "architectures", *_COMMON, *family.defaults, *_WINDOWS}))
    rope_wrong = list(rope_problems(values))
    values = {**_COMMON, **family.defaults, **values}
    wrong = list(wrong_values(values, _SIZES))
    wrong = wrong or list(_not_supported(values, family))  # takes the values to be of the right kind
    if wrong := [*wrong, *rope_wrong, *surplus]:
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
        raise ConfigError(["; ".join(absent(folder))] if not folder.exists() else [why_no_config(folder)])
    try:
        text = path.read_text(encoding="utf-8")
        values = None if text.startswith(LFS_POINTER) else json.loads(text)
    except FileNotFoundError as error:
        raise ConfigError([why_no_config(folder)]) from error
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError([f"{CONFIG_FILE} cannot be read ({error}); copy it again"]) from error
    if text.startswith(LFS_POINTER):
        raise ConfigError([f"{CONFIG_FILE} is a Git LFS pointer, not the file itself; run `git lfs pull` there"])
    if not isinstance(values, dict):
        raise ConfigError([f"{CONFIG_FILE} does not hold an object; copy it again"])
    return values


def _not_supported(values: dict[str, Any], family: Family) -> Iterator[str]:
    """The values that megatron-core would compute differently."""
    heads = values.get("architectures")
    if heads and family.model_class.lower() not in [name.lower() for name in heads]:
        generates = any(name.endswith("ForCausalLM") for name in heads)
        what = "another model" if generates else "not a language model with a head"
        read = f"model_type={values['model_type']} is read as {family.model_class} only"
        yield f"architectures={', '.join(heads)} is {what}; {read}"
    if values["quantization_config"] is not None:
        method = values["quantization_config"]
        method = method.get("quant_method") if isinstance(method, dict) else method
        by = f" ({method})" if method else ""
        yield f"quantization_config{by}: quantised weights are not read; use the folder of the unquantised model"
    if values["hidden_act"] not in ACTIVATIONS:
        yield f"hidden_act={values['hidden_act']!r} is not supported; supported are {', '.join(ACTIVATIONS)}"
    if bool(values["attention_bias"]) != bool(values["mlp_bias"]):
        yield (
            f"attention_bias={values['attention_bias']}, mlp_bias={values['mlp_bias']}: megatron-core has a bias in "
            "both blocks or in neither; this model is not supported"
        )
    yield from _layer_types(values)


def _layer_types(values: dict[str, Any]) -> Iterator[str]:
    types, layers = values["layer_types"], values["num_hidden_layers"]
    if types is None:
        return
    if len(types) != layers:
        yield f"layer_types: has {len(types)} entries, num_hidden_layers={layers}; copy {CONFIG_FILE} again"
    if other := sorted({kind for kind in types if kind not in _LAYER_TYPES}):
        yield f"layer_types: {', '.join(other)} is not supported; supported are {', '.join(_LAYER_TYPES)}"


def _window(values: dict[str, Any]) -> int | None:
    """The most tokens that some layer attends to; None where all layers attend to all earlier tokens."""
    window = values["sliding_window"] if values.get("use_sliding_window", True) else None
    if values["layer_types"] is not None:
        return window if "sliding_attention" in values["layer_types"] else None
    first = values.get("max_window_layers") or 0  # Qwen's windows begin at this layer
    return window if first < values["num_hidden_layers"] else None


def _fields(values: dict[str, Any], family: Family) -> dict[str, tuple[str, Any]]:
    """Fields of a provider, each with the key it comes from and its value."""
    rope = rope_of(values)
    scaled = rope.kind == "llama3"
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
        "rotary_base": ("rope_theta", float(rope.theta)),
        "rotary_percent": ("partial_rotary_factor", 1.0),
        "rope_scaling": ("rope_scaling", scaled),
        "rope_scaling_factor": ("rope_scaling", float(rope.scaling["factor"]) if scaled else 8.0),
        "attention_dropout": ("attention_dropout", float(values["attention_dropout"])),
        "max_position_embeddings": ("max_position_embeddings", values["max_position_embeddings"]),
    }
