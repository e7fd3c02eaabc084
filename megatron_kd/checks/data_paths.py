"""Data and tokenizer: one origin, there on disk, with what validation needs."""

from __future__ import annotations

import os
from collections.abc import Iterator

from megatron_kd.config.blend import parse_blend, parse_split
from megatron_kd.config.container import ConfigContainer
from megatron_kd.config.derived import true_vocab_size
from megatron_kd.config.problem import line, value_of
from megatron_kd.config.text_files import LOSS_MASK, TEXT_FILES, is_text_file
from megatron_kd.config.values import show
from megatron_kd.errors import ConfigError

_BLENDS = ("data_path", "train_data_path", "valid_data_path", "test_data_path")
_NO_VALIDATION = "or set validation.eval_iters=0 to do without validation"
_NO_TOKENIZER = (
    "there is no such folder or file; download it first (`hf download NAME --local-dir DIR`; hub names are not "
    "looked up), or make the tiny recipes' with `make corpus`"
)


def data_problems(cfg: ConfigContainer, *, trains: bool = True) -> Iterator[str]:
    """Problems of the sections `dataset` and `tokenizer`; `trains` false: there need be no training data."""
    yield from _one_origin(cfg, trains)
    for name in _BLENDS:
        yield from _blend(cfg, f"dataset.{name}")
    yield from _text(cfg)
    yield from _chat(cfg)
    yield from _split(cfg, trains)
    yield from _validation_data(cfg)
    yield from _tokenizer(cfg)
    cache = cfg.dataset.path_to_cache
    if cache is not None and os.path.exists(cache) and not os.path.isdir(cache):
        yield line(cfg, "dataset.path_to_cache", "must be a folder, and is a file; name another place")


def _one_origin(cfg: ConfigContainer, trains: bool) -> Iterator[str]:
    data = cfg.dataset
    per_split = [name for name in _BLENDS[1:] if getattr(data, name) is not None]
    given = [
        *(["dataset.mock"] if data.mock else []),
        *(["dataset.text_path"] if data.text_path is not None else []),
        *(["dataset.data_path"] if data.data_path is not None else []),
        *(f"dataset.{name}" for name in per_split[:1]),
    ]
    if not given:
        yield line(
            cfg,
            "dataset.data_path dataset.train_data_path dataset.mock",
            "there is no data; set dataset.data_path=[PREFIX], made by `megatron-kd preprocess --input TEXT "
            "--output-prefix PREFIX --tokenizer DIR`, dataset.text_path=FILE.txt or .jsonl, or dataset.mock=true for "
            "made-up tokens",
        )
    elif len(given) > 1:
        yield line(cfg, " ".join(given), "data comes from one place only; keep one of these and unset the others")
    elif trains and per_split and data.train_data_path is None:
        yield line(cfg, f"dataset.train_data_path {given[0]}", "without training data; set dataset.train_data_path")


def _blend(cfg: ConfigContainer, name: str) -> Iterator[str]:
    items = value_of(cfg, name)
    if items is None:
        return
    try:
        blend = parse_blend(items)
    except ConfigError as error:
        yield line(cfg, name, str(error))
        return
    for prefix in blend.prefixes:
        missing = [prefix + ending for ending in (".bin", ".idx") if not os.path.isfile(prefix + ending)]
        conversations = os.path.isfile(prefix + LOSS_MASK)
        if not missing and conversations != cfg.dataset.chat:
            what, cure = ("conversations", "true") if conversations else ("text, made without --chat", "false")
            yield line(
                cfg, f"{name} dataset.chat", f"{show(prefix)} is {what}; set dataset.chat={cure}, or leave it out"
            )
        if missing and is_text_file(prefix):
            yield f"{name}: {show(prefix)} is text, not the prefix of tokenised files; set dataset.text_path to it"
        elif missing and prefix.endswith((".bin", ".idx")):
            yield f"{name}: {show(prefix)} must be the prefix of both files; write {show(prefix[:-4])}"
        elif missing:
            absent = " and ".join(map(show, missing))
            yield (
                f"{name}: {absent} not found; make them with `megatron-kd preprocess --input TEXT "
                f"--output-prefix {show(prefix)} --tokenizer DIR` (those of the tiny recipes with `make corpus`)"
            )


def _text(cfg: ConfigContainer) -> Iterator[str]:
    path = cfg.dataset.text_path
    if path is None:
        return
    if not is_text_file(path):
        kinds = ", ".join(TEXT_FILES)
        why = f"must end in one of {kinds}; convert it, or set dataset.data_path=[PREFIX] if it is tokenised already"
        yield line(cfg, "dataset.text_path", why)
    elif not os.path.isfile(path):
        yield line(cfg, "dataset.text_path", "there is no such file; give a text file with a document a line")
    elif not os.access(path, os.R_OK):
        yield line(cfg, "dataset.text_path", "cannot be read; change its permissions")
    elif os.path.getsize(path) == 0:
        yield line(cfg, "dataset.text_path", "is empty; give a text file with a document a line")
    if cfg.tokenizer.tokenizer_type == "null":
        why = "the null tokenizer has no text; set tokenizer.tokenizer_type=huggingface and tokenizer.tokenizer_model"
        yield line(cfg, "dataset.text_path tokenizer.tokenizer_type", why)


def _chat(cfg: ConfigContainer) -> Iterator[str]:
    """What goes with conversations alone, and what does not go with them."""
    data = cfg.dataset
    if not data.chat:
        if data.packed_sequence:
            why = "only conversations are packed, text fills its sequences anyway; set it to false, or chat to true"
            yield line(cfg, "dataset.packed_sequence dataset.chat", why)
        if data.long_samples != "truncate":
            why = "only conversations can be too long, text is read on; set it to truncate, or chat to true"
            yield line(cfg, "dataset.long_samples dataset.chat", why)
        return
    if data.mock:
        yield line(cfg, "dataset.chat dataset.mock", "made-up tokens are no conversations; set dataset.chat=false")
    if data.eod_mask_loss:
        why = "of conversations, only what the assistant says is learnt; set dataset.eod_mask_loss=false"
        yield line(cfg, "dataset.chat dataset.eod_mask_loss", why)
    if data.text_path is not None and data.text_path.endswith(".txt"):
        yield line(cfg, "dataset.chat dataset.text_path", "conversations are lines of JSON; give a .jsonl file")


def _cut_by_split(cfg: ConfigContainer) -> bool:
    return cfg.dataset.data_path is not None or cfg.dataset.text_path is not None


def _split(cfg: ConfigContainer, trains: bool) -> Iterator[str]:
    try:
        split = parse_split(cfg.dataset.split)
    except ConfigError as error:
        yield line(cfg, "dataset.split", str(error))
        return
    if trains and _cut_by_split(cfg) and split.share("train") == 0:
        yield line(cfg, "dataset.split", "leaves nothing to train on; make the first number greater than 0")
    if _validates(cfg) and _cut_by_split(cfg) and split.share("valid") == 0:
        why = f"leaves no data to validate on; make the second number greater than 0, {_NO_VALIDATION}"
        yield line(cfg, "dataset.split validation.eval_iters", why)


def _validation_data(cfg: ConfigContainer) -> Iterator[str]:
    if _validates(cfg) and cfg.dataset.train_data_path is not None and cfg.dataset.valid_data_path is None:
        why = f"there is no data to validate on; set dataset.valid_data_path, {_NO_VALIDATION}"
        yield line(cfg, "dataset.valid_data_path validation.eval_iters", why)


def _validates(cfg: ConfigContainer) -> bool:
    return cfg.validation.eval_iters > 0 and not cfg.dataset.mock


def _tokenizer(cfg: ConfigContainer) -> Iterator[str]:
    model, kind = cfg.tokenizer.tokenizer_model, cfg.tokenizer.tokenizer_type
    if kind == "huggingface" and model is not None and not os.path.exists(model):
        yield line(cfg, "tokenizer.tokenizer_model", _NO_TOKENIZER)
    yield from _teacher_tokenizer(cfg)
    named = kind == "huggingface" and model is not None
    if named or (cfg.dataset.mock and true_vocab_size(cfg) is not None):
        return
    if cfg.dataset.mock:
        why = "made-up tokens need a vocabulary size; set model.vocab_size"
        yield line(cfg, "dataset.mock model.vocab_size", why)
    elif kind == "huggingface":
        why = "set it to the tokenizer's folder or tokenizer.json, the one the data was made with"
        yield line(cfg, "tokenizer.tokenizer_model", why)
    elif cfg.tokenizer.vocab_size is None:
        why = "the null tokenizer needs the number of ids in the data; set tokenizer.vocab_size"
        yield line(cfg, "tokenizer.tokenizer_type tokenizer.vocab_size", why)


def _teacher_tokenizer(cfg: ConfigContainer) -> Iterator[str]:
    """It is there to be compared with the student's, so there must be a teacher and a student's."""
    field, path = "tokenizer.teacher_tokenizer_model", cfg.tokenizer.teacher_tokenizer_model
    if path is None:
        return
    if not os.path.exists(path):
        yield line(cfg, field, _NO_TOKENIZER)
    if cfg.models.teacher is None:
        yield line(cfg, field, f"this run has no teacher; set {field}=null")
    elif cfg.tokenizer.tokenizer_type != "huggingface" or cfg.tokenizer.tokenizer_model is None:
        why = f"is compared with the student's, which is not given; set tokenizer.tokenizer_model, or {field}=null"
        yield line(cfg, f"{field} tokenizer.tokenizer_type tokenizer.tokenizer_model", why)
