"""A checkpoint, saved at any layout, as a Hugging Face folder: `megatron_kd.huggingface.export.export_hf`.

    config.json, generation_config.json      what `transformers` builds
    model*.safetensors (and an index)        the weights, in bf16 by default, without padding of the vocabulary
    tokenizer.json, ...                      the run's tokenizer
    README.md                                the model card: how the model was made

One process writes it layer by layer; at most one safetensors file is in memory.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub import StateDictSplit, split_torch_state_dict_into_shards
from safetensors.torch import save_file
from torch import Tensor

from megatron_kd.checkpoints.contents import architecture_of, find_checkpoint
from megatron_kd.checkpoints.model_weights import saved_vocab_size
from megatron_kd.checkpoints.reading import opened, verify
from megatron_kd.checkpoints.tensor_parts import CheckpointReader
from megatron_kd.checkpoints.weights_only import make_durable
from megatron_kd.config.document import read_document
from megatron_kd.config.gpt_model import GPTModelProvider
from megatron_kd.config.run_config import RUN_CONFIG
from megatron_kd.data.tokens.save_tokenizer import save_tokenizer
from megatron_kd.data.tokens.tokenizer import HuggingFaceTokenizer, load_huggingface
from megatron_kd.errors import InputError
from megatron_kd.huggingface.architecture import FAMILIES
from megatron_kd.huggingface.as_asked import GENERATION, as_trained, generation_settings
from megatron_kd.huggingface.as_config import config_values, family_of, why_not_exportable
from megatron_kd.huggingface.card import model_card, saved_tokenizer
from megatron_kd.huggingface.other_folders import INDEX
from megatron_kd.huggingface.provenance import licence_of, student_base
from megatron_kd.huggingface.tensors import Tensor as Source
from megatron_kd.huggingface.tensors import huggingface_shapes, tensors_of
from megatron_kd.runtime.files import refuse_existing

if TYPE_CHECKING:
    from transformers import PretrainedConfig

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32, "float16": torch.float16}


def export_hf(
    checkpoint: str | Path,
    output: str | Path,
    *,
    dtype: str = "bfloat16",
    tokenizer: str | Path | None = None,
    max_shard_size: str = "5GB",
    verified: bool = False,
) -> Path:
    """Write the model of a checkpoint, a distillation's student, as a Hugging Face folder.

    Args:
        checkpoint: `.../iter_0000100`, a `checkpoints` or a run folder, saved at any layout.
        output: the folder to make; it appears once it is complete.
        dtype: of the weights: "bfloat16", "float32" or "float16".
        tokenizer: a tokenizer folder or `tokenizer.json`; None takes the one that the run names, if it names one.
        max_shard_size: of one safetensors file, such as "5GB".
        verified: the caller has verified the checkpoint, so this process does not, and communicates with no other rank.

    Returns:
        `output`.

    Raises:
        InputError: no such checkpoint, a model that `transformers` has no family for, a tokenizer that is not there or
            has more ids than the model, or something at `output`.
        CheckpointCorrupt: the checkpoint is not as it was written.
    """
    output = Path(output)
    refuse_existing(output)
    if dtype not in DTYPES:
        raise InputError(f"dtype={dtype!r}: must be one of {', '.join(DTYPES)}")
    folder = find_checkpoint(checkpoint, "checkpoint")
    model = _model(folder)
    tokens = _tokenizer(folder, tokenizer, model)
    reader = CheckpointReader(opened(folder) if verified else verify(folder, need_manifest=False))
    _check_tensors(reader, model, folder)
    temporary = output.with_name(f".{output.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    _write_weights(reader, model, DTYPES[dtype], max_shard_size, temporary)
    run = read_document(folder / RUN_CONFIG).data
    tokens = None if tokens is None else as_trained(tokens, folder, run)
    _write_config(model, dtype, tokens, run, temporary)
    if tokens is not None:
        save_tokenizer(tokens, temporary)
    _write_card(folder, model, dtype, run, temporary)
    make_durable(temporary)
    temporary.rename(output)
    return output


def _write_card(checkpoint: Path, model: GPTModelProvider, dtype: str, run: dict[str, Any], folder: Path) -> None:
    """README.md, and the text of the licence of the model that this one was made of."""
    base = student_base(run)
    licence = None if base is None else licence_of(base.folder)
    if licence is not None and licence.file is not None:
        shutil.copyfile(licence.file, folder / licence.file.name)
    (folder / "README.md").write_text(model_card(checkpoint, model, dtype, run, licence), encoding="utf-8")


def _model(folder: Path) -> GPTModelProvider:
    """The architecture, with the number of token ids that the checkpoint has."""
    model = architecture_of(folder)
    model = replace(model, vocab_size=saved_vocab_size(folder) or model.vocab_size)
    if model.vocab_size is None:
        raise InputError(f"checkpoint={folder}: does not say how many token ids its model has")
    if reasons := why_not_exportable(model):
        raise InputError(f"checkpoint={folder}: transformers has no such model: {'; '.join(reasons)}")
    return model


def _tokenizer(folder: Path, given: str | Path | None, model: GPTModelProvider) -> HuggingFaceTokenizer | None:
    path = given if given is not None else saved_tokenizer(folder)
    if path is None:
        return None
    if given is None and not Path(path).exists():
        raise InputError(
            f"the run's tokenizer.tokenizer_model={path} is not there; give the tokenizer: --tokenizer DIR"
        )
    tokens = load_huggingface(path, "tokenizer")
    assert model.vocab_size is not None
    if tokens.vocab_size > model.vocab_size:
        raise InputError(f"tokenizer={path}: has {tokens.vocab_size} ids, the model only {model.vocab_size}")
    return tokens


def _check_tensors(reader: CheckpointReader, model: GPTModelProvider, folder: Path) -> None:
    wrong = []
    for source in tensors_of(model):
        want = source.shape if source.layer is None else (model.num_layers, *source.shape)
        have = reader.shapes.get(source.key)
        padded = source.key.endswith(("word_embeddings.weight", "output_layer.weight"))
        if have is None:
            wrong.append(f"{source.key} is missing")
        elif have != want and not (padded and have[0] >= want[0] and have[1:] == want[1:]):
            wrong.append(f"{source.key} has shape {have}, by its run_config.yaml it must be {want}")
    if wrong:
        raise InputError(f"checkpoint={folder}: {'; '.join(dict.fromkeys(wrong))}")


def _write_weights(
    reader: CheckpointReader, model: GPTModelProvider, dtype: torch.dtype, max_shard_size: str, folder: Path
) -> None:
    # Planned on tensors without memory; each file takes its tensors in the order given.
    outlines = {n: torch.empty(shape, dtype=dtype, device="meta") for n, shape in huggingface_shapes(model).items()}
    plan = _split(outlines, max_shard_size)
    waiting: dict[str, dict[str, Tensor]] = {}
    for name, tensor in _tensors(reader, model, dtype):
        file = plan.tensor_to_filename[name]
        waiting.setdefault(file, {})[name] = tensor
        if len(waiting[file]) == len(plan.filename_to_tensors[file]):
            save_file(waiting.pop(file), folder / file, metadata={"format": "pt"})
    assert not waiting
    if plan.is_sharded:
        index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _split(outlines: dict[str, Tensor], max_shard_size: str) -> StateDictSplit:
    try:
        return split_torch_state_dict_into_shards(outlines, max_shard_size=max_shard_size)
    except ValueError as error:
        raise InputError(f"max_shard_size={max_shard_size!r}: {error}; write a size such as 5GB or 500MB") from error


def _tensors(reader: CheckpointReader, model: GPTModelProvider, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    for source in tensors_of(model):
        whole = _read(reader, source)
        for name, shape in source.sources.items():
            tensor = torch.empty(shape, dtype=dtype)
            for block in source.blocks:
                if block.name == name:
                    tensor[block.start : block.start + block.rows] = whole[block.at : block.at + block.rows]
            if dtype == torch.float16 and not tensor.isfinite().all():
                raise InputError(f"dtype=float16: {name} has values outside its range; use bfloat16 or float32")
            yield name, tensor


def _read(reader: CheckpointReader, source: Source) -> Tensor:
    """A tensor of megatron-core without its padding."""
    zeros = tuple(0 for _ in source.shape)
    if source.layer is None:
        return reader.read(source.key, zeros, source.shape)
    return reader.read(source.key, (source.layer, *zeros), (1, *source.shape))[0]


def _write_config(
    model: GPTModelProvider, dtype: str, tokens: HuggingFaceTokenizer | None, run: dict[str, Any], folder: Path
) -> None:
    from transformers import AutoConfig, GenerationConfig

    special: dict[str, Any] = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    if tokens is not None:
        special = {name: tokens.special_id(name.removesuffix("_id")) for name in special}
        special["eos_token_id"] = tokens.eos_id
    config: PretrainedConfig = AutoConfig.for_model(family_of(model), **config_values(model), **special)
    config.architectures = [FAMILIES[family_of(model)].model_class]
    config.torch_dtype = dtype
    config.save_pretrained(folder)
    if tokens is None:
        GenerationConfig.from_model_config(config).save_pretrained(folder)
    else:
        (folder / GENERATION).write_text(
            json.dumps(generation_settings(tokens, run), indent=2) + "\n", encoding="utf-8"
        )
