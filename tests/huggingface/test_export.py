"""From Hugging Face folders, through a distillation at any layout, to a Hugging Face folder again."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from megatron_kd.checkpoints.contents import architecture_of
from megatron_kd.config.container import ConfigContainer
from megatron_kd.config.gpt_distillation import GPTDistillationProvider
from megatron_kd.config.sections import TokenizerConfig, ValidationConfig
from megatron_kd.data.tokens.byte_bpe import train_byte_bpe
from megatron_kd.errors import InputError
from megatron_kd.huggingface.export import export_hf
from megatron_kd.huggingface.import_folder import import_hf
from tests.huggingface.families import FAMILIES, SEQUENCE, VOCAB, reference_logits, save
from tests.huggingface.megatron import whole_logits
from tests.ranks import run_ranks
from tests.tiny import tiny_config

# Ranks, tensor- and pipeline-parallel size; what is left is data parallel.
LAYOUTS = [(4, 2, 2), (2, 2, 1), (2, 1, 2), (2, 1, 1), (2, 2, 1), (2, 1, 2)]


slow = pytest.mark.slow  # whole runs on several ranks


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("export")


@pytest.fixture(scope="module")
def runs(root: Path) -> dict[str, ConfigContainer]:
    """A finished distillation of each family, of a student of two layers from a teacher of four."""
    configs = {}
    for index, (name, (_, tp, pp)) in enumerate(zip(FAMILIES, LAYOUTS, strict=True)):
        model = GPTDistillationProvider.from_hf(
            save(name, root / f"student{index}", num_hidden_layers=2),
            teacher=save(name, root / f"teacher{index}"),
            seq_length=SEQUENCE,
            tensor_model_parallel_size=tp,
            pipeline_model_parallel_size=pp,
        )
        cfg = tiny_config(root / f"run{index}", micro_batch_size=1, iters=3, save=True)
        configs[name] = replace(
            cfg, model=model, tokenizer=TokenizerConfig(), validation=ValidationConfig(eval_iters=0)
        )
    for ranks in (2, 4):
        chosen = [cfg for cfg, layout in zip(configs.values(), LAYOUTS, strict=True) if layout[0] == ranks]
        run_ranks(ranks, train_all, chosen, timeout=300)
    return configs


def train_all(configs: list[ConfigContainer]) -> None:
    """On a rank."""
    from megatron_kd.training.train import train

    for cfg in configs:
        train(cfg)


def checkpoint_logits(folders: list[str]) -> list[Tensor | None]:
    """On a rank: megatron-core's logits of checkpoints."""
    from megatron_kd.checkpoints.model_weights import load_weights, saved_vocab_size
    from megatron_kd.runtime.start import running_ranks

    found = []
    with running_ranks(tensor_model_parallel_size=1, pipeline_model_parallel_size=1, seed=1) as layout:
        for folder in folders:
            path = Path(folder)
            assert saved_vocab_size(next(path.glob("checkpoints/*"), path)) == VOCAB
            model = architecture_of(path).provide(layout, padded_vocab_size=512, vocab_size=VOCAB)
            load_weights([model], path, "checkpoint")
            found.append(whole_logits(model, layout))
    return found


@slow
def test_an_exported_student_has_the_logits_of_its_checkpoint(runs: dict[str, ConfigContainer], root: Path) -> None:
    ours = run_ranks(1, checkpoint_logits, [cfg.logger.run_dir for cfg in runs.values()])[0]
    for index, (name, cfg) in enumerate(runs.items()):
        folder = export_hf(cfg.logger.run_dir, root / f"hf{index}", dtype="float32", max_shard_size="30KB")
        theirs, before = reference_logits(folder), reference_logits(root / f"student{index}")
        torch.testing.assert_close(ours[index], theirs, atol=1e-5, rtol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
        assert (theirs - before).abs().max() > 1e-2, name  # it has learnt
        assert theirs.shape[-1] == VOCAB
        assert len(list(folder.glob("*.safetensors"))) > 1


@slow
def test_an_exported_student_generates_and_says_what_it_was_made_of(
    runs: dict[str, ConfigContainer], root: Path
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    name = next(iter(runs))
    train_byte_bpe([f"{n} cats on a mat" for n in range(300)], 270, root / "tokenizer")
    folder = export_hf(runs[name].logger.run_dir, root / "card", tokenizer=root / "tokenizer")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    ids = tokenizer("7 cats", return_tensors="pt").input_ids
    made = model.generate(ids, max_new_tokens=5, min_new_tokens=5, do_sample=False)
    assert made.shape == (1, ids.shape[1] + 5)
    config = json.loads((folder / "config.json").read_text())
    assert config["vocab_size"] == VOCAB and config["eos_token_id"] == tokenizer.eos_token_id
    assert config["architectures"] == ["LlamaForCausalLM"] and config["max_position_embeddings"] == 16384
    weights = load_file(folder / "model.safetensors")
    assert {value.dtype for value in weights.values()} == {torch.bfloat16} and "lm_head.weight" not in weights
    card = (folder / "README.md").read_text()
    for part in (
        "knowledge-distillation",
        "## Teacher",
        "teacher0",
        "forward_kl",
        "mock",
        "train_iters: 3",
    ):
        assert part in card
    assert not list(root.glob(".*"))


def test_an_imported_checkpoint_is_the_folder_again(root: Path) -> None:
    """import-hf and export-hf are each other's inverse, bit for bit; the checkpoint loads as any other."""
    names = list(FAMILIES)
    sources = [save(name, root / f"source{i}", max_shard_size="30KB") for i, name in enumerate(names)]
    checkpoints = [import_hf(source, root / f"imported{i}") for i, source in enumerate(sources)]
    ours = run_ranks(1, checkpoint_logits, list(map(str, checkpoints)))[0]
    for index, source in enumerate(sources):
        torch.testing.assert_close(ours[index], reference_logits(source), atol=1e-5, rtol=1e-5)
        again = export_hf(checkpoints[index], root / f"again{index}", dtype="float32")
        before, after = _tensors(source), _tensors(again)
        assert before.keys() == after.keys()
        assert all(torch.equal(after[name], value) for name, value in before.items())
        config = {f: json.loads((f / "config.json").read_text()) for f in (source, again)}
        known = config[again].keys() & config[source].keys() - {"model_type", "architectures", "transformers_version"}
        special = {"bos_token_id", "eos_token_id", "pad_token_id", "sliding_window", "layer_types"}
        assert {k: config[again][k] for k in known - special} == {k: config[source][k] for k in known - special}


def _tensors(folder: Path) -> dict[str, Tensor]:
    return {name: value for file in folder.glob("*.safetensors") for name, value in load_file(file).items()}


@slow
def test_what_cannot_be_exported_is_said(runs: dict[str, ConfigContainer], root: Path) -> None:
    run_dir = next(iter(runs.values())).logger.run_dir

    def refused(match: str, output: str = "refused", **settings: Any) -> None:
        with pytest.raises(InputError, match=match):
            export_hf(run_dir, root / output, **settings)
        assert not (root / "refused").exists()

    (root / "there").mkdir()
    refused("there: is already there", "there")
    refused("dtype='int8'", dtype="int8")
    refused("max_shard_size='large'", max_shard_size="large")
    train_byte_bpe([f"{n} cats on a mat, {n} dogs" * 9 for n in range(900)], 310, root / "larger")
    refused("has 310 ids, the model only 301", tokenizer=root / "larger")
    refused("nowhere", tokenizer=root / "nowhere")
