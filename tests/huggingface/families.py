"""Small random models of every supported family, as `transformers` makes and saves them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

VOCAB = 301  # odd, so no number of ranks divides it
SEQUENCE = 32
_SIZES: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 8,
    "num_key_value_heads": 2, "vocab_size": VOCAB, "max_position_embeddings": 1024,
}  # fmt: skip
_LLAMA3 = {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
           "original_max_position_embeddings": 8192}  # fmt: skip

# Class of `transformers`, and what differs from the sizes above.
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama3, tied, scaled rotary frequencies": (
        "LlamaConfig",
        {
            "tie_word_embeddings": True,
            "rope_theta": 500000.0,
            "rope_scaling": _LLAMA3,
            "rms_norm_eps": 1e-5,
            "max_position_embeddings": 16384,
        },
    ),
    "llama2, as many groups as heads": ("LlamaConfig", {"num_key_value_heads": 8}),
    "llama, biases everywhere": ("LlamaConfig", {"attention_bias": True, "mlp_bias": True}),
    "mistral, heads wider than hidden": ("MistralConfig", {"head_dim": 8, "sliding_window": None}),
    "qwen2, QKV bias, tied": ("Qwen2Config", {"tie_word_embeddings": True, "rope_theta": 1e6}),
    "qwen3, q/k norm": ("Qwen3Config", {"head_dim": 8, "rope_theta": 1e6}),
}


def build(name: str, **changes: Any) -> Any:
    """A model of `transformers` whose every weight shows in the logits."""
    import transformers

    kind, differences = FAMILIES[name]
    config = getattr(transformers, kind)(**{**_SIZES, **differences, **changes})
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    torch.manual_seed(sum(map(ord, name)))
    draw_weights(model)
    return model


def save(name: str, folder: Path, **changes: Any) -> Path:
    """`build` and save, in several files where `max_shard_size` says so."""
    shard_size = changes.pop("max_shard_size", "5GB")
    build(name, **changes).save_pretrained(folder, max_shard_size=shard_size)
    return folder


@torch.no_grad()
def draw_weights(model: nn.Module) -> None:
    """Norms around 1, biases not 0, and weights large enough for every part to show in the logits."""
    for name, parameter in model.named_parameters():
        parameter.normal_(1.0 if "norm" in name else 0.0, 0.2)


def tokens() -> Tensor:
    """[B, S] ids of the whole vocabulary."""
    return torch.randint(VOCAB, (2, SEQUENCE), generator=torch.Generator().manual_seed(3))


@torch.no_grad()
def reference_logits(folder: Path) -> Tensor:
    """[B, S, V] logits of `transformers`, of what is saved in a folder."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, torch_dtype=torch.float32).eval()
    return model(tokens()).logits
