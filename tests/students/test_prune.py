"""`megatron-kd prune`: a checkpoint or a Hugging Face folder becomes a checkpoint that a run starts from."""

from __future__ import annotations

import contextlib
import io
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_kd.checkpoints.contents import architecture_of, tokenizer_of
from megatron_kd.commands import cli
from megatron_kd.config.sections import DatasetConfig, TokenizerConfig
from megatron_kd.students.prune_problems import Calibration
from megatron_kd.students.pruned_sizes import Sizes, pruned_architecture
from tests.huggingface import families
from tests.ranks import run_ranks
from tests.tiny import TEACHER, VOCAB, tiny_config, train_and_read

SIZES = Sizes(num_layers=3, hidden_size=32, ffn_hidden_size=64, num_attention_heads=2)
CALIBRATION = Calibration(
    dataset=DatasetConfig(mock=True),
    tokenizer=TokenizerConfig(tokenizer_type="null", vocab_size=VOCAB),
    seq_length=16,
    batches=2,
    batch_size=4,
)


def train_teacher_and_prune(folder: Path) -> dict[str, Any]:
    """On a rank: a teacher of one step, pruned twice."""
    from megatron_kd.students.prune import prune

    teacher = tiny_config(folder / "run", distilled=False, iters=1, save=True)
    teacher.model = TEACHER
    train_and_read(teacher)
    first = prune(folder / "run", folder / "student", SIZES, CALIBRATION)
    prune(folder / "run", folder / "again", SIZES, CALIBRATION)
    return {"student": first.student, "kept": first.depth.kept}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prune")
    (made,) = run_ranks(1, train_teacher_and_prune, folder)
    assert made["student"] == pruned_architecture(replace(TEACHER, init=None), SIZES)
    assert len(made["kept"]) == 3
    return folder


def test_the_student_says_what_it_is(folder: Path) -> None:
    model = architecture_of(folder / "student")
    assert model == pruned_architecture(replace(TEACHER, init=None), SIZES)
    assert (model.kv_channels, model.num_query_groups, model.vocab_size) == (12, 2, VOCAB)
    assert tokenizer_of(folder / "student") == CALIBRATION.tokenizer


def test_the_same_command_gives_the_same_weights(folder: Path) -> None:
    first, again = ({path.name: path.read_bytes() for path in (folder / name).glob("*.distcp")}
                    for name in ("student", "again"))  # fmt: skip
    assert first.keys() == again.keys() and first
    assert first == again


def test_a_distillation_starts_from_it_at_tensor_parallelism_2(folder: Path, tmp_path: Path) -> None:
    cfg = tiny_config(
        tmp_path,
        tp=2,
        iters=2,
        teacher={"init": None, "checkpoint": str(folder / "run")},
        pretrained_checkpoint=str(folder / "student"),
    )
    for name, value in vars(replace(architecture_of(folder / "student"), tensor_model_parallel_size=2)).items():
        setattr(cfg.model, name, value)
    records = run_ranks(2, train_and_read, cfg)[0]
    assert [record["step"] for record in records] == [1, 2, 2]


def prune_folder_on_text(folder: Path) -> tuple[str, float]:
    """On a rank: drop a layer of a Hugging Face folder by the command, and export what it made.

    Returns what the command printed, and how far the exported logits are from those of transformers without the layer.
    """
    from transformers import AutoModelForCausalLM

    from megatron_kd.data.tokens.byte_bpe import train_byte_bpe
    from megatron_kd.huggingface.export import export_hf

    lines = [f"{number} times {number} is {number * number}" for number in range(200)]
    (folder / "text.txt").write_text("\n".join(lines))
    families.save("qwen3, q/k norm", folder / "hf", vocab_size=300)
    train_byte_bpe(["\n".join(lines)], 300, folder / "hf")
    words = ["prune", str(folder / "hf"), "--output", str(folder / "student"), "--data", str(folder / "text.txt")]
    told = io.StringIO()
    with contextlib.redirect_stdout(told):
        assert cli.main([*words, "--num-layers", "3", "--seq-length", "16", "--calibration-batches", "2"]) == 0
    export_hf(folder / "student", folder / "out", dtype="float32")
    teacher, student = (AutoModelForCausalLM.from_pretrained(folder / name).eval() for name in ("hf", "out"))
    kept = map(int, re.search(r"layers kept, from 0: ([\d, ]+), of", told.getvalue())[1].split(","))
    teacher.model.layers = torch.nn.ModuleList([teacher.model.layers[layer] for layer in kept])
    tokens = families.tokens() % 300
    with torch.no_grad():  # without the cache, which counts layers
        difference = teacher(tokens, use_cache=False).logits - student(tokens, use_cache=False).logits
    return told.getvalue(), difference.abs().max().item()


@pytest.mark.slow
def test_a_hugging_face_folder_is_pruned_on_text_and_exported(tmp_path: Path) -> None:
    told, difference = run_ranks(1, prune_folder_on_text, tmp_path)[0]
    assert re.search(r"parameters: [\d,]+ of [\d,]+ \(\d\d\.\d%\)", told)
    assert f"wrote {tmp_path / 'student'}" in told
    assert difference < 1e-5


def test_everything_wrong_is_told_at_once(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    words = ["prune", str(folder / "run"), "--output", str(folder / "student"), "--num-layers", "5"]
    words += ["--hidden-size", "40", "--num-attention-heads", "3", "--calibration-batches", "0", "--data", "absent"]
    assert cli.main(words) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line.removeprefix("error: ").partition(":")[0] for line in lines] == [
        "WORLD_SIZE=2", f"--output {folder / 'student'}", "--num-layers 5", "--hidden-size 40",
        "--num-attention-heads 3", "--calibration-batches 0", "--data absent",
    ]  # fmt: skip
    assert "at tensor and pipeline parallelism 1" in lines[0]


def test_a_folder_that_is_no_model_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["prune", str(tmp_path), "--output", str(tmp_path / "a"), "--data", "b"]) == 2
    assert "no checkpoint there" in capsys.readouterr().err
