"""The model card of an exported model: what it was made of and how, how good it is, and its licence."""

from __future__ import annotations

import json
import re
from pathlib import Path, PureWindowsPath
from typing import Any

import yaml

from megatron_kd.checkpoints.contents import step_of, tokenizer_of
from megatron_kd.checkpoints.saved_state import read_run_state
from megatron_kd.config.document import write_yaml
from megatron_kd.config.gpt_model import GPTModelProvider
from megatron_kd.config.values import show
from megatron_kd.huggingface.as_config import family_of
from megatron_kd.huggingface.provenance import Base, Licence, licence_of, model_base, student_base

_KD = ("logits_loss_kind", "logit_kl_temperature", "logit_kl_topk", "skip_lm_loss", "kd_loss_scale", "loss_balancer",
       "intermediate_layer_pairs")  # fmt: skip
_DATA = ("text_path", "data_path", "train_data_path", "split", "mock", "chat")
_TRAINING = ("train_iters", "num_epochs", "global_batch_size")
# Comparable between models; the total loss depends on its weights.
_MEASURED = ("lm_loss", "perplexity", "teacher_kl", "teacher_top1_agreement", "teacher_top5_agreement", "tokens")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")  # a name without an owner may be that of a folder


def saved_tokenizer(checkpoint: Path) -> str | None:
    """The tokenizer that a checkpoint's run read, by its `run_config.yaml`; None where it had none."""
    tokenizer = tokenizer_of(checkpoint)
    return tokenizer.tokenizer_model if tokenizer is not None and tokenizer.tokenizer_type == "huggingface" else None


def model_card(
    checkpoint: Path, model: GPTModelProvider, dtype: str, run: dict[str, Any], licence: Licence | None
) -> str:
    """README.md as text, with the front matter that model hubs read. No path of the machine is in it, only names.

    Args:
        checkpoint: the folder that was exported.
        model: its architecture.
        dtype: of the exported weights.
        run: the content of its `run_config.yaml`.
        licence: of the model that it was made of, if that states one.
    """
    base = student_base(run)
    size = f"{model.num_layers} layers, {model.hidden_size} hidden, {model.vocab_size} token ids"
    lines = ["---", _front(run, base, licence).rstrip(), "---", "", "# Model card", ""]
    lines += [f"A {family_of(model)} model ({size}), its weights in {dtype},"]
    lines += [f"exported from the megatron_kd checkpoint `{checkpoint.name}`.", ""]
    for title, rows in [*_sections(run, base), _training(run, checkpoint), _evaluation(checkpoint)]:
        if items := _items(rows):
            lines += [f"## {title}", "", *items, ""]
    return "\n".join([*lines, "## Run configuration", "", "```yaml", write_yaml(portable(run)).rstrip(), "```", ""])


def portable(value: Any) -> Any:
    """A value of a configuration with only the names of files and folders that it gives by absolute paths."""
    if isinstance(value, dict):
        return {key: portable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [portable(item) for item in value]
    if isinstance(value, str) and (value.startswith(("/", "~", "file:")) or PureWindowsPath(value).is_absolute()):
        return PureWindowsPath(value).name
    return value


def _front(run: dict[str, Any], base: Base | None, licence: Licence | None) -> str:
    distilled = "teacher" in run["model"]
    front: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "text-generation"}
    if base is not None and _HUB_ID.fullmatch(base.name):
        front["base_model"] = [base.name]
    front |= {} if licence is None else licence.front
    front["tags"] = ["megatron-kd", *(["knowledge-distillation", "distillation"] if distilled else [])]
    return yaml.safe_dump(front, sort_keys=False, allow_unicode=True)


def _items(rows: dict[str, Any]) -> list[str]:
    """Lines of a list, with values as YAML writes them; those that are null are left out."""
    return [
        f"- {name}: `{value if isinstance(value, str) else show(value)}`"
        for name, value in rows.items()
        if value is not None
    ]


def _sections(run: dict[str, Any], base: Base | None) -> list[tuple[str, dict[str, Any]]]:
    student, teacher = run["model"], run["model"].get("teacher")
    origin = (run.get("checkpoint") or {}).get("pretrained_checkpoint")
    found = [("Initial weights", _origin({**student, "checkpoint": origin}, base))]
    if teacher is not None:
        sizes = {name: teacher.get(name) for name in ("num_layers", "hidden_size", "vocab_size")}
        base_of_teacher = model_base(teacher)
        licence = None if base_of_teacher is None else licence_of(base_of_teacher.folder)
        stated = {} if licence is None else {"license": licence.front["license"]}
        found.append(("Teacher", _origin(teacher, base_of_teacher) | stated | sizes))
        losses = student.get("kd_config") or {}
        found.append(("Losses", {name: losses[name] for name in _KD if name in losses}))
    data = {name: (run.get("dataset") or {}).get(name) for name in _DATA}
    found.append(("Data", {name: portable(value) for name, value in data.items() if value not in (None, False)}))
    if student.get("quantization") is not None:
        found.append(("Quantization", {"trained for": student["quantization"], "weights here": "full precision"}))
    return found


def _training(run: dict[str, Any], checkpoint: Path) -> tuple[str, dict[str, Any]]:
    """Length and batch as the last attempt was configured, and what all attempts have read."""
    values = {name: run["train"].get(name) for name in _TRAINING} if "train" in run else {}
    values["seq_length"] = run["model"].get("seq_length") if values else None
    state = read_run_state(checkpoint)
    values["samples read"] = None if state is None else state.consumed_samples
    return "Training", {name: value for name, value in values.items() if value is not None}


def _origin(model: dict[str, Any], base: Base | None) -> dict[str, Any]:
    named = {"model": base.name} if base is not None else {}
    fields = ("hf_path", "checkpoint", "init")
    return named | {name: portable(model[name]) for name in fields if model.get(name) is not None}


def _evaluation(checkpoint: Path) -> tuple[str, dict[str, Any]]:
    """The run's last validation up to this checkpoint, by the `metrics.jsonl` of its run folder."""
    step, found = step_of(checkpoint), dict[str, Any]()
    try:
        lines = (checkpoint.parent.parent / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        lines = []
    for line in lines if step is not None else ():
        try:
            record = json.loads(line)
            if record["split"] == "validation" and record["step"] <= step:
                found = record
        except (ValueError, KeyError, TypeError):
            continue  # the last line of a run that was killed may be cut off
    title = f"Evaluation, on the validation data after step {found.get('step')}"
    return title, {name: found[name] for name in _MEASURED if name in found}
