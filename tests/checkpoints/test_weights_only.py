"""A checkpoint of weights alone: what reads it, what it says about itself, and that it is never overwritten."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from megatron_kd.checkpoints.contents import architecture_of
from megatron_kd.config.gpt_model import GPTModelProvider
from megatron_kd.errors import InputError
from tests.ranks import run_ranks
from tests.tiny import STUDENT, VOCAB, tiny_config, train_and_read

TIED = replace(STUDENT, share_embeddings_and_output_weights=True)


def saved(folder: Path, tp: int, pp: int) -> dict[str, Tensor]:
    """On a rank: save random weights; the model's parameters by name."""
    from megatron_kd.checkpoints.weights_only import save_weights
    from megatron_kd.models.weights import local_shards
    from megatron_kd.runtime.start import running_ranks

    with running_ranks(tensor_model_parallel_size=tp, pipeline_model_parallel_size=pp, seed=1) as layout:
        model = TIED.provide(layout, padded_vocab_size=256, vocab_size=VOCAB, seed=5)
        save_weights(local_shards(model), folder, model=TIED, vocab_size=VOCAB)
        with pytest.raises(InputError, match="is already there"):
            save_weights(local_shards(model), folder, model=TIED, vocab_size=VOCAB)
        return {name: p.detach().clone() for name, p in model.named_parameters()}


def loaded(folder: Path, provider: GPTModelProvider) -> dict[str, Tensor]:
    """On a rank: the parameters of a model of one rank that was loaded from `folder`."""
    from megatron_kd.checkpoints.model_weights import load_weights
    from megatron_kd.runtime.start import running_ranks

    with running_ranks(tensor_model_parallel_size=1, pipeline_model_parallel_size=1, seed=1) as layout:
        model = provider.provide(layout, padded_vocab_size=384, vocab_size=VOCAB)
        load_weights([model], folder, "model.teacher.checkpoint")
        return {name: p.detach().clone() for name, p in model.named_parameters()}


def test_weights_of_two_stages_are_read_at_another_layout_and_width(tmp_path: Path) -> None:
    folder = tmp_path / "weights"
    first, last = run_ranks(2, saved, folder, tp=1, pp=2)
    provider = architecture_of(folder)
    assert provider == replace(TIED, init=None)
    values = run_ranks(1, loaded, folder, provider)[0]
    embedding = values["embedding.word_embeddings.weight"]
    assert torch.equal(embedding[:256], first["embedding.word_embeddings.weight"]) and not embedding[256:].any()
    name = "decoder.layers.{}.mlp.linear_fc1.weight"
    assert torch.equal(values[name.format(0)], first[name.format(0)])
    assert torch.equal(values[name.format(1)], last[name.format(0)])
    assert not list(tmp_path.glob(".*"))  # nothing of the temporary name is left


def test_the_architecture_of_a_distillation_is_its_students(tmp_path: Path) -> None:
    run_ranks(1, train_and_read, tiny_config(tmp_path, iters=1, save=True))
    assert architecture_of(tmp_path) == replace(STUDENT, init=None)


def test_a_folder_without_a_checkpoint_has_no_architecture(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"x=.*: no checkpoint there"):
        architecture_of(tmp_path, "x")
