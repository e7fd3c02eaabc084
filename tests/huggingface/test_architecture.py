"""`config.json` and providers: each the other's image, and what is refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from megatron_kd.config.gpt_model import GPTModelProvider
from megatron_kd.errors import ConfigError
from megatron_kd.huggingface.architecture import provider_from_hf, read_architecture
from megatron_kd.huggingface.as_config import config_values, family_of, why_not_exportable
from tests.models.test_presets import huggingface_config, presets

SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 8,
         "num_key_value_heads": 2, "vocab_size": 100, "max_position_embeddings": 4096}  # fmt: skip


def written(folder: Path, **values: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", **SIZES, **values}))
    return folder


def normalised(model: GPTModelProvider) -> GPTModelProvider:
    """Everything a default stands for written out, and nothing but the architecture."""
    return replace(model, kv_channels=model.head_size, max_position_embeddings=None, hf_path=None, seq_length=1,
                   num_query_groups=model.num_query_groups or model.num_attention_heads)  # fmt: skip


@presets
def test_a_preset_is_what_its_config_json_says(preset: Callable[..., GPTModelProvider], tmp_path: Path) -> None:
    model = preset()
    huggingface_config(preset.__name__, model).save_pretrained(tmp_path)
    assert normalised(provider_from_hf(tmp_path)) == normalised(model)


@pytest.mark.parametrize("kind", ["LlamaConfig", "MistralConfig", "Qwen2Config", "Qwen3Config"])
def test_keys_that_a_file_leaves_out_mean_what_transformers_takes(kind: str, tmp_path: Path) -> None:
    import transformers

    config = getattr(transformers, kind)(sliding_window=None)
    sizes = {
        key: getattr(config, key) for key in SIZES if key not in ("num_key_value_heads", "max_position_embeddings")
    }
    (tmp_path / "config.json").write_text(json.dumps({"model_type": config.model_type, **sizes}))
    model = provider_from_hf(tmp_path)
    assert model.num_query_groups == config.num_key_value_heads
    assert model.head_size == getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    assert (model.layernorm_epsilon, model.rotary_base) == (config.rms_norm_eps, config.rope_theta)
    assert model.share_embeddings_and_output_weights == config.tie_word_embeddings
    assert model.max_position_embeddings == config.max_position_embeddings
    # Mistral's windows are there unless they are turned off, Qwen's only where they are turned on.
    assert read_architecture(tmp_path).window == (4096 if kind == "MistralConfig" else None)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"model_type": "gemma2"}, "model_type='gemma2' is not supported; supported are llama, mistral, qwen2, qwen3"),
        ({"model_type": "qwen3_moe"}, "model_type='qwen3_moe' is not supported"),
        ({"model_type": None}, "model_type=None is not supported"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "is not a language model"),
        ({"quantization_config": {"bits": 4}}, "quantised weights are not read"),
        ({"hidden_act": "quick_gelu"}, "hidden_act='quick_gelu' is not supported"),
        ({"attention_bias": True}, "attention_bias=True, mlp_bias=False"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "'yarn' is not supported; supported are llama3"),
        ({"rope_scaling": {"type": "linear", "factor": 4.0}}, "'linear' is not supported"),
        (
            {"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 2.0, "high_freq_factor": 4.0,
                              "original_max_position_embeddings": 8192}},
            "rope_scaling.low_freq_factor=2.0: megatron-core computes with 1.0 only",
        ),
        ({"hidden_size": None}, "hidden_size=None must be a whole number"),
        ({"num_key_value_heads": "2"}, "num_key_value_heads='2' must be"),
        ({"rms_norm_eps": "x"}, "rms_norm_eps='x' must be a number"),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, dict) else "",
)  # fmt: skip
def test_what_megatron_core_would_compute_otherwise_is_refused(values: dict, said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        read_architecture(written(tmp_path, **values))
    assert any(said in problem for problem in error.value.lines), error.value.lines


def test_a_folder_without_a_readable_config_json_is_refused(tmp_path: Path) -> None:
    for content, said in (
        (None, "is empty"),
        ("{", "cannot be read"),
        ("[]", "does not hold an object"),
    ):
        if content is not None:
            (tmp_path / "config.json").write_text(content)
        with pytest.raises(ConfigError, match=said):
            read_architecture(tmp_path)
    with pytest.raises(ConfigError, match="there is no such folder"):
        provider_from_hf(tmp_path / "nowhere")


def test_the_values_of_newer_files_are_read(tmp_path: Path) -> None:
    llama3 = {"rope_type": "llama3", "factor": 16.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
              "original_max_position_embeddings": 8192, "rope_theta": 5e5}  # fmt: skip
    model = provider_from_hf(written(tmp_path, rope_parameters=llama3), seq_length=64)
    assert (model.rotary_base, model.rope_scaling, model.rope_scaling_factor) == (5e5, True, 16.0)
    assert (model.seq_length, model.hf_path) == (64, str(tmp_path))


def test_qwens_windows_count_only_where_they_are_used(tmp_path: Path) -> None:
    qwen = {"model_type": "qwen2", "sliding_window": 16, "max_window_layers": 1}
    assert read_architecture(written(tmp_path, **qwen)).window is None
    assert read_architecture(written(tmp_path, **qwen, use_sliding_window=True)).window == 16
    later = {**qwen, "max_window_layers": 2}
    assert read_architecture(written(tmp_path, **later, use_sliding_window=True)).window is None
    types = {**qwen, "layer_types": ["full_attention"] * 2}
    assert read_architecture(written(tmp_path, **types, use_sliding_window=True)).window is None


def test_a_config_written_is_the_config_read(tmp_path: Path) -> None:
    for family, values in {
        "llama": {"attention_bias": True, "mlp_bias": True, "hidden_act": "gelu_pytorch_tanh"},
        "qwen2": {"tie_word_embeddings": True},
        "qwen3": {"head_dim": 16, "rope_theta": 1e6},
    }.items():
        model = provider_from_hf(written(tmp_path, model_type=family, **values))
        assert family_of(model) == family and why_not_exportable(model) == []
        again = provider_from_hf(written(tmp_path, **config_values(model), model_type=family))
        assert normalised(again) == normalised(model)


def test_what_no_family_computes_is_named() -> None:
    model = GPTModelProvider(normalization="LayerNorm", gated_linear_unit=False, qk_layernorm=True, add_qkv_bias=True)
    reasons = why_not_exportable(model)
    assert [reason.partition("=")[0] for reason in reasons] == ["normalization", "gated_linear_unit", "qk_layernorm"]
