"""The model card of an exported model: how it was made, by its checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from megatron_kd.checkpoints.contents import tokenizer_of
from megatron_kd.config.document import read_document
from megatron_kd.config.gpt_model import GPTModelProvider
from megatron_kd.config.run_config import RUN_CONFIG
from megatron_kd.huggingface.as_config import family_of

_KD = ("logits_loss_kind", "logit_kl_temperature", "logit_kl_topk", "skip_lm_loss", "kd_loss_scale", "loss_balancer",
       "intermediate_layer_pairs")  # fmt: skip
_DATA = ("text_path", "data_path", "train_data_path", "split", "mock")
_TRAINING = ("train_iters", "global_batch_size")


def saved_tokenizer(checkpoint: Path) -> str | None:
    """The tokenizer that a checkpoint's run read, by its `run_config.yaml`; None where it had none."""
    tokenizer = tokenizer_of(checkpoint)
    return tokenizer.tokenizer_model if tokenizer is not None and tokenizer.tokenizer_type == "huggingface" else None


def model_card(checkpoint: Path, model: GPTModelProvider, dtype: str) -> str:
    """README.md as text, with the front matter that model hubs read.

    Args:
        checkpoint: the folder that was exported.
        model: its architecture.
        dtype: of the exported weights.
    """
    run = read_document(checkpoint / RUN_CONFIG).data
    front = ["---", "library_name: transformers", "pipeline_tag: text-generation", "tags:", "- megatron-kd"]
    front += ["- knowledge-distillation"] if "teacher" in run["model"] else []
    size = f"{model.num_layers} layers, {model.hidden_size} hidden, {model.vocab_size} token ids"
    lines = [*front, "---", "", "# Model card", "", f"A {family_of(model)} model ({size}), its weights in {dtype},"]
    lines += [f"exported from the megatron_kd checkpoint `{checkpoint.name}`.", ""]
    for title, rows in _sections(run):
        if rows:
            lines += [f"## {title}", "", *(f"- {name}: `{value}`" for name, value in rows.items()), ""]
    config = (checkpoint / RUN_CONFIG).read_text(encoding="utf-8")
    return "\n".join([*lines, "## Run configuration", "", "```yaml", config.rstrip(), "```", ""])


def _sections(run: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    student, teacher = run["model"], run["model"].get("teacher")
    origin = run.get("checkpoint", {}).get("pretrained_checkpoint")
    found = [("Initial weights", _origin({**student, "checkpoint": origin}))]
    if teacher is not None:
        sizes = {name: teacher.get(name) for name in ("num_layers", "hidden_size", "vocab_size")}
        found.append(("Teacher", _origin(teacher) | sizes))
        losses = student.get("kd_config") or {}
        found.append(("Losses", {name: losses[name] for name in _KD if name in losses}))
    data = {name: run.get("dataset", {}).get(name) for name in _DATA}
    found.append(("Data", {name: value for name, value in data.items() if value not in (None, False)}))
    training = {name: run.get("train", {}).get(name) for name in _TRAINING} if "train" in run else {}
    if student.get("quantization") is not None:
        found.append(("Quantization", {"trained for": student["quantization"], "weights here": "full precision"}))
    return [*found, ("Training", {**training, "seq_length": student.get("seq_length")} if training else {})]


def _origin(model: dict[str, Any]) -> dict[str, Any]:
    return {name: model[name] for name in ("hf_path", "checkpoint", "init") if model.get(name) is not None}
