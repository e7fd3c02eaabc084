"""Folders that are not whole: each is refused with a line that says which file, before a tensor is read."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from megatron_kd.errors import InputError
from megatron_kd.huggingface.architecture import provider_from_hf
from megatron_kd.huggingface.folder import folder_problems, read_entries
from megatron_kd.huggingface.import_folder import import_hf
from megatron_kd.huggingface.other_folders import INDEX, SINGLE
from megatron_kd.huggingface.tensors import huggingface_shapes
from tests.huggingface.families import FAMILIES, build, save

NAME = "qwen2, QKV bias, tied"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of several files."""
    return save(NAME, tmp_path_factory.mktemp("whole"), num_hidden_layers=2, max_shard_size="20KB")


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "model"))


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def change(folder: Path, edit: Callable[[dict[str, torch.Tensor]], None]) -> None:
    """Rewrite a folder as one file with other tensors."""
    tensors = {name: value for file in files(folder) for name, value in load_file(file).items()}
    for file in [*files(folder), folder / INDEX]:
        file.unlink()
    edit(tensors)
    save_file(tensors, folder / SINGLE)


def truncate(folder: Path) -> str:
    file = files(folder)[1]
    file.write_bytes(file.read_bytes()[:-7])
    return f"{file.name} has {file.stat().st_size} bytes, by its header it must have {file.stat().st_size + 7}"


def cut_in_the_header(folder: Path) -> str:
    file = files(folder)[0]
    file.write_bytes(file.read_bytes()[:20])
    return f"{file.name} is truncated or not a safetensors file (20 bytes)"


def not_safetensors(folder: Path) -> str:
    files(folder)[0].write_bytes((10).to_bytes(8, "little") + b"x" * 10)
    return f"{files(folder)[0].name} is not a safetensors file"


def wrong_offsets(folder: Path) -> str:
    header = json.dumps({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}).encode()
    files(folder)[0].write_bytes(len(header).to_bytes(8, "little") + header + b"1234")
    return "cannot take 4 bytes"


def missing_file(folder: Path) -> str:
    name = files(folder)[0].name
    (folder / name).unlink()
    return f"1 of the {len(files(folder)) + 1} files that {INDEX} names is missing ({name})"


def broken_index(folder: Path) -> str:
    (folder / INDEX).write_text("{")
    return f"{INDEX} cannot be read"


def index_that_leaves_the_folder(folder: Path) -> str:
    (folder / INDEX).write_text(json.dumps({"weight_map": {"a": "../other/model.safetensors"}}))
    return "must name files of this folder"


def index_of_other_files(folder: Path) -> str:
    index = json.loads((folder / INDEX).read_text())
    first, last = (file.name for file in files(folder)[:2])
    name = next(name for name, file in index["weight_map"].items() if file == first)
    index["weight_map"][name] = last
    (folder / INDEX).write_text(json.dumps(index))
    return f"names tensors that are not in the file it gives ({name})"


def pickles_only(folder: Path) -> str:
    for file in [*files(folder), folder / INDEX]:
        file.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04")
    return "has only pickled weights (pytorch_model.bin), which can run code and are not read"


def no_weights(folder: Path) -> str:
    for file in [*files(folder), folder / INDEX]:
        file.unlink()
    return f"there is neither {SINGLE} nor {INDEX}"


def missing_tensors(folder: Path) -> str:
    change(folder, lambda t: [t.pop(name) for name in list(t) if "q_proj" in name])
    return "4 tensors are missing (model.layers.0.self_attn.q_proj.weight, model.layers.0.self_attn.q_proj.bias, "


def another_shape(folder: Path) -> str:
    change(folder, lambda t: t.update({"model.norm.weight": torch.ones(31)}))
    return "model.norm.weight has shape (31,), by config.json it must be (32,)"


def another_dtype(folder: Path) -> str:
    change(folder, lambda t: t.update({"model.norm.weight": torch.ones(32, dtype=torch.int8)}))
    return "model.norm.weight is I8; weights must be F32, F16, BF16"


def unexpected_tensors(folder: Path) -> str:
    change(folder, lambda t: t.update({"model.layers.0.self_attn.o_proj.bias": torch.ones(32)}))
    return "model.layers.0.self_attn.o_proj.bias: config.json describes a model without these tensors"


FAULTS = [truncate, cut_in_the_header, not_safetensors, wrong_offsets, missing_file, broken_index,
          index_that_leaves_the_folder, index_of_other_files, pickles_only, no_weights, missing_tensors, another_shape,
          another_dtype, unexpected_tensors]  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_folder_that_is_not_whole_is_refused(fault: Callable[[Path], str], folder: Path, tmp_path: Path) -> None:
    said = fault(folder)
    (line,) = folder_problems(folder, provider_from_hf(folder))
    assert said in line
    with pytest.raises(InputError) as error:
        import_hf(folder, tmp_path / "imported")
    assert said in str(error.value) and not (tmp_path / "imported").exists()


def test_all_faults_are_told_together(folder: Path) -> None:
    first, last = missing_file(folder), truncate(folder)
    problems = folder_problems(folder, provider_from_hf(folder))
    assert len(problems) == 2 and first in problems[0] and last in problems[1]


def test_tensors_that_follow_from_the_configuration_are_ignored(folder: Path) -> None:
    def add(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(2)
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()

    change(folder, add)
    assert folder_problems(folder, provider_from_hf(folder)) == []


@pytest.mark.parametrize("name", FAMILIES)
def test_the_table_has_every_tensor_of_transformers(name: str, tmp_path: Path) -> None:
    model = build(name)
    model.save_pretrained(tmp_path)
    entries = read_entries(tmp_path)
    assert huggingface_shapes(provider_from_hf(tmp_path)) == {name: entry.shape for name, entry in entries.items()}
