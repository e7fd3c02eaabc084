"""Weights of Hugging Face folders in megatron-core models: the logits are those of `transformers`, at any layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from megatron_kd.huggingface.architecture import provider_from_hf
from tests.huggingface.families import FAMILIES, SEQUENCE, reference_logits, save
from tests.huggingface.megatron import whole_logits
from tests.ranks import run_ranks


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model of each family, one of them in several files."""
    root = tmp_path_factory.mktemp("models")
    sizes = {name: "20KB" if name.startswith("qwen3") else "5GB" for name in FAMILIES}
    return {name: save(name, root / f"{i}", max_shard_size=sizes[name]) for i, name in enumerate(FAMILIES)}


@pytest.fixture(scope="module")
def expected(folders: dict[str, Path]) -> dict[str, Tensor]:
    return {name: reference_logits(folder) for name, folder in folders.items()}


def imported_logits(folders: dict[str, Path], tp: int, pp: int) -> dict[str, Tensor | None]:
    """On a rank: the logits of every folder's model; the memory is filled with what is not its weights before."""
    from megatron_kd.huggingface.read import load_huggingface
    from megatron_kd.runtime.start import running_ranks

    found = {}
    with running_ranks(tensor_model_parallel_size=tp, pipeline_model_parallel_size=pp, seed=1) as layout:
        for name, folder in folders.items():
            provider = provider_from_hf(folder, seq_length=SEQUENCE)
            model = provider.provide(layout, padded_vocab_size=384, dtype="float32")
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.fill_(float("nan"))
            load_huggingface([model], provider, "model.hf_path")
            found[name] = whole_logits(model, layout)
    return found


@pytest.mark.parametrize(("tp", "pp"), [(1, 1), (2, 1), (1, 2), (2, 2)])
def test_logits_are_those_of_transformers(
    tp: int, pp: int, folders: dict[str, Path], expected: dict[str, Tensor]
) -> None:
    ranks = run_ranks(tp * pp, imported_logits, folders, tp, pp)
    for name, logits in ranks[-1].items():
        assert expected[name].std() > 0.3, name
        torch.testing.assert_close(logits, expected[name], atol=1e-5, rtol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


def bytes_read(folder: Path) -> tuple[int, int, int, int]:
    """On a rank of TP2: bytes of the slices read and of the largest, of the largest parameter, and of all of them."""
    from megatron_kd.huggingface import read
    from megatron_kd.runtime.start import running_ranks

    slices: list[int] = []

    class Counted:
        def __init__(self, tensor: Any) -> None:
            self._tensor = tensor

        def __getitem__(self, index: Any) -> Tensor:
            part = self._tensor[index]
            slices.append(part.nbytes)
            return part

    class CountedFiles(read.Files):
        def _slices(self, file: Path, name: str) -> Any:
            return Counted(super()._slices(file, name))

    read.Files = CountedFiles
    provider = provider_from_hf(folder, seq_length=SEQUENCE)
    with running_ranks(tensor_model_parallel_size=2, pipeline_model_parallel_size=1, seed=1) as layout:
        model = provider.provide(layout, padded_vocab_size=384)
        read.load_huggingface([model], provider, "model.hf_path")
        sizes = [parameter.nbytes for parameter in model.parameters()]
        return sum(slices), max(slices), max(sizes), sum(sizes)


def test_a_rank_reads_its_shard_and_nothing_else(folders: dict[str, Path]) -> None:
    """So beside its memory a rank holds one slice; all of it is read but the padding of the vocabulary."""
    for total, largest, largest_parameter, parameters in run_ranks(2, bytes_read, folders["qwen3, q/k norm"]):
        assert largest <= largest_parameter
        assert 0.7 * parameters < total <= parameters
