"""A teacher, and students distilled from it at several layouts, on a little language that they can learn."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from megatron_kd.config.container import ConfigContainer
from megatron_kd.config.sections import DatasetConfig, TokenizerConfig
from megatron_kd.data.tokens.byte_bpe import train_byte_bpe
from tests.tiny import tiny_config

SEQUENCE = 32
NAMES, THINGS = ("Ada", "Ben", "Cleo", "Dan"), {"Ada": "apples", "Ben": "bells", "Cleo": "clouds", "Dan": "drums"}
CHAT_TEMPLATE = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}<assistant>"

# A loss that is not what is reported, a projection, and a balancer with a state.
KD = {"logits_loss_kind": "reverse_kl", "logit_kl_temperature": 2.0, "skip_lm_loss": False}
STUDENTS: dict[str, dict[str, Any]] = {
    "tp2": {"tp": 2, "sequence_parallel": True},
    "pp2": {"pp": 2, "micro_batch_size": 4, "precision": "bf16"},
}


def sentence(rng: random.Random) -> str:
    """One of the language: the thing follows from the name."""
    name = rng.choice(NAMES)
    return f"{name} counts {rng.choice(('two', 'three', 'nine'))} {THINGS[name]}."


@dataclass(frozen=True)
class Trained:
    """Where everything lies."""

    root: Path
    text: Path
    tokenizer: Path
    teacher: Path

    def student(self, layout: str) -> Path:
        return self.root / layout


def prepare(root: Path) -> Trained:
    """The text and its tokenizer; models are not there yet."""
    rng = random.Random(0)
    lines = [sentence(rng) for _ in range(1500)]
    (root / "text.txt").write_text("\n".join(lines) + "\n")
    train_byte_bpe(lines, 320, root / "tokenizer")
    config = root / "tokenizer/tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"chat_template": CHAT_TEMPLATE}))
    return Trained(root, root / "text.txt", root / "tokenizer", root / "teacher")


def configs(trained: Trained) -> list[ConfigContainer]:
    """The teacher's run and the students', to be run in this order on two ranks."""
    shape = {"vocab_size": None, "seq_length": SEQUENCE, "init_method_std": 0.1}
    teacher = tiny_config(trained.teacher, distilled=False, iters=40, micro_batch_size=4, student=shape, save=True)
    students = [
        tiny_config(
            trained.student(name), iters=15, kd=KD, save=True,
            student={**shape, "num_layers": 2, "hidden_size": 16}, teacher={**shape, "num_layers": 2}, **layout,
        )
        for name, layout in STUDENTS.items()
    ]  # fmt: skip
    for cfg in students:
        cfg.model.teacher = replace(  # type: ignore[union-attr]
            cfg.model.teacher,
            hidden_size=32,
            ffn_hidden_size=64,
            init=None,
            checkpoint=str(trained.teacher),  # type: ignore[union-attr]
        )
    data = DatasetConfig(text_path=str(trained.text), split="90,10,0")
    tokens = TokenizerConfig(tokenizer_model=str(trained.tokenizer))
    return [replace(cfg, dataset=data, tokenizer=tokens) for cfg in (teacher, *students)]


def train_all(runs: list[ConfigContainer]) -> None:
    """On a rank."""
    from megatron_kd.training.train import train

    for cfg in runs:
        train(cfg)
