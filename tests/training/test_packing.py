"""A step over packed conversations is the step over the same ones unpacked, wherever the models are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from megatron_kd.data.chat.chat_datasets import training_rows
from megatron_kd.data.preprocessing.tokenise_files import preprocess
from megatron_kd.data.tokens.byte_bpe import train_byte_bpe
from megatron_kd.data.tokens.tokenizer import load_huggingface
from tests.data.chats import PLAIN, chats, write_chats
from tests.ranks import run_ranks
from tests.teachers.test_strategies import placed_config
from tests.tiny import train_and_read

COMPARED = ("loss", "lm_loss", "logits_loss", "intermediate_loss", "grad_norm", "tokens")
COUNT, SEQ, VOCAB = 200, 90, 340
KD = {"skip_lm_loss": False}  # beside the logits' divergence and the default pair of layers


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """200 conversations, tokenised, and their tokenizer."""
    folder = tmp_path_factory.mktemp("chats")
    conversations = chats(COUNT, longest=3)
    texts = ["".join(f"<|{m['role']}|>\n{m['content']}\n" for m in messages) for messages in conversations]
    train_byte_bpe(texts, VOCAB, folder / "tokenizer")
    file = write_chats(folder / "chats.jsonl", conversations)
    tokenizer = load_huggingface(folder / "tokenizer")
    preprocess([file], folder / "chats", tokenizer, chat=True, chat_template=PLAIN, workers=1)
    return folder


def config(
    run: Path, data: Path, student: dict[str, Any], teacher: dict[str, Any], /, *, packed: bool, **more: Any
) -> Any:
    """One step, over all conversations."""
    cfg = placed_config(run, {"iters": 1, **student}, {"strategy": "colocated", **teacher}, kd=KD, **more)
    for model in (cfg.model, cfg.model.teacher):
        model.seq_length, model.vocab_size = SEQ, VOCAB
    cfg.dataset = replace(
        cfg.dataset, mock=False, chat=True, packed_sequence=packed, train_data_path=[str(data / "chats")],
        path_to_cache=str(data / "cache"),
    )  # fmt: skip
    cfg.tokenizer.tokenizer_type, cfg.tokenizer.tokenizer_model = "huggingface", str(data / "tokenizer")
    cfg.validation.eval_iters = 0
    rows = training_rows(cfg.dataset, SEQ) if packed else COUNT
    assert rows % 2 == 0 and (rows < COUNT / 2) == packed, "choose another number of conversations"
    cfg.train.global_batch_size, cfg.train.micro_batch_size = rows, rows // 2 if packed else 20
    return cfg


LEARNED = {"position_embedding_type": "learned_absolute"}
CELLS: dict[str, tuple[int, dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "TP1": (1, {}, {}, {}),
    "TP1, positions learnt": (1, {}, {}, {"student": LEARNED, "teacher": LEARNED}),
    "TP1, recomputed": (
        1, {}, {},
        {"student": {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}},
    ),
    "TP2 with sequence parallel": (2, {"tp": 2, "sequence_parallel": True}, {"tp": 2, "sequence_parallel": True}, {}),
    "PP2": (2, {"pp": 2}, {"pp": 2}, {}),
    "DP2, the teacher balanced at PP2": (2, {}, {"strategy": "balanced", "pp": 2, "micro_batch_size": 3}, {}),
    "DP2, the teacher on one rank": (2, {}, {"strategy": "gpu0"}, {}),
}  # fmt: skip


def records(configs: list[Any]) -> list[list[dict[str, Any]]]:
    """On a rank: run one configuration after the other; what each recorded, as far as this rank knows."""
    return [train_and_read(cfg) for cfg in configs]


def first_steps(world_size: int, configs: list[Any]) -> list[dict[str, Any]]:
    """The record of the first step of each configuration."""
    return [steps[0] for steps in run_ranks(world_size, records, configs, timeout=300)[0]]


@pytest.fixture(scope="module")
def unpacked(data: Path) -> dict[bool, dict[str, Any]]:
    """The step over unpacked conversations, without and with learnt positions."""
    more = [{}, {"student": LEARNED, "teacher": LEARNED}]
    configs = [config(data / f"unpacked{n}", data, {}, {}, packed=False, **kinds) for n, kinds in enumerate(more)]
    return dict(enumerate(first_steps(1, configs)))


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [1, 2])
def test_a_packed_step_is_the_unpacked_one(
    world_size: int, data: Path, tmp_path: Path, unpacked: dict[bool, dict[str, Any]]
) -> None:
    cells = {name: cell[1:] for name, cell in CELLS.items() if cell[0] == world_size}
    configs = [
        config(tmp_path / name, data, student, teacher, packed=True, **more)
        for name, (student, teacher, more) in cells.items()
    ]
    for cell, packed in zip(cells, first_steps(world_size, configs), strict=True):
        alone = unpacked["learnt" in cell]
        assert packed["tokens"] == alone["tokens"] > 0
        for name in COMPARED:
            assert packed[name] == pytest.approx(alone[name], rel=1e-5), (cell, name)
