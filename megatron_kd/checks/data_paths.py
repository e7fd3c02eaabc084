"""Data and tokenizer: one origin, there on disk, with what validation needs."""

from __future__ import annotations

import os
from collections.abc import Iterator

from megatron_kd.checks.new_folders import why_not_made
from megatron_kd.checks.one_of import keep_one
from megatron_kd.config.blend import BLENDS, Split, parse_blend, parse_split, split_data
from megatron_kd.config.container import ConfigContainer
from megatron_kd.config.derived import true_vocab_size
from megatron_kd.config.hub_names import absent, looks_like_hub_name
from megatron_kd.config.problem import Problem, value_of
from megatron_kd.config.text_files import LOSS_MASK, TEXT_FILES, is_text_file
from megatron_kd.config.values import show
from megatron_kd.data.chat.trained_template import differing
from megatron_kd.data.tokens.blend_files import file_problems, sample_problems
from megatron_kd.data.tokens.token_files import missing_files, pair_problems
from megatron_kd.errors import ConfigError

_ORIGINS = (("text_path",), BLENDS[:1], BLENDS[1:])  # fields of one origin go together


def data_problems(cfg: ConfigContainer) -> Iterator[Problem]:
    """Problems of the sections `dataset` and `tokenizer`, whatever the data is for."""
    yield from _one_origin(cfg)
    for name in BLENDS:
        yield from _blend(cfg, f"dataset.{name}")
    yield from _text(cfg)
    yield from _chat(cfg)
    yield from _split(cfg)
    yield from _validation_data(cfg)
    yield from _tokenizer(cfg)
    cache = cfg.dataset.path_to_cache
    if cache is not None and (why := why_not_made(cache)):
        yield Problem.of(cfg, "dataset.path_to_cache", why, "name another folder")


def training_data_problems(cfg: ConfigContainer) -> Iterator[Problem]:
    """Data that leaves nothing to train on."""
    data = cfg.dataset
    given = [f"dataset.{name}" for name in BLENDS[2:] if getattr(data, name) is not None]
    if given and data.train_data_path is None and not (data.mock or _cut_by_split(cfg)):
        cure = "set dataset.train_data_path"
        yield Problem.of(cfg, f"dataset.train_data_path {given[0]}", "there is no training data", cure)
    if _share(cfg, "train") == 0:
        cure = "make the first number greater than 0"
        yield Problem.of(cfg, "dataset.split", "leaves nothing to train on", cure)
    yield from _samples(cfg, "train")


def _one_origin(cfg: ConfigContainer) -> Iterator[Problem]:
    data = cfg.dataset
    named = [[name for name in names if getattr(data, name) is not None] for names in _ORIGINS]
    given = [*([["mock"]] if data.mock else []), *filter(None, named)]
    if not given:
        yield Problem.of(
            cfg,
            "dataset.data_path dataset.train_data_path dataset.mock",
            "there is no data",
            "set dataset.data_path=[PREFIX], made by `megatron-kd preprocess --input TEXT --output-prefix PREFIX "
            "--tokenizer DIR`, dataset.text_path=FILE.txt or .jsonl, or dataset.mock=true for mock data",
        )
    elif len(given) > 1:
        unset = {"mock": "false"}
        cure = keep_one([" ".join(f"dataset.{name}={unset.get(name, 'null')}" for name in origin) for origin in given])
        names = " ".join(f"dataset.{name}" for origin in given for name in origin)
        yield Problem.of(cfg, names, "data comes from one place only", cure)


def _blend(cfg: ConfigContainer, name: str) -> Iterator[Problem]:
    items = value_of(cfg, name)
    if items is None:
        return
    blend = parse_blend(items, name)
    if isinstance(blend, Problem):
        yield blend
        return
    for prefix in dict.fromkeys(blend.prefixes):
        yield from _prefix(cfg, name, prefix)


def _prefix(cfg: ConfigContainer, name: str, prefix: str) -> Iterator[Problem]:
    conversations = os.path.isfile(prefix + LOSS_MASK)
    for why, cure in pair_problems(prefix, chat=cfg.dataset.chat and conversations):
        yield Problem.of(cfg, name, why, cure)
    if not _of_kind(cfg, prefix) and not missing_files(prefix):
        what, chat = ("conversations", "true") if conversations else ("text, made without --chat", "false")
        cure = f"set dataset.chat={chat}"
        yield Problem.of(cfg, f"{name} dataset.chat", f"{show(prefix)} is {what}", cure)


def _of_kind(cfg: ConfigContainer, prefix: str) -> bool:
    """Whether tokenised files are conversations if the run's data is, and text otherwise."""
    return os.path.isfile(prefix + LOSS_MASK) == cfg.dataset.chat


def _samples(cfg: ConfigContainer, split: str) -> Iterator[Problem]:
    """Too little data for a split that the run reads; text that is to be tokenised is not counted here."""
    if cfg.dataset.mock or cfg.model.seq_length < 1:
        return
    try:
        data = split_data(cfg.dataset, split)
    except ConfigError:
        return  # `_blend` and `_split` report it
    if data is not None and not all(_of_kind(cfg, prefix) for prefix in data.blend.prefixes):
        return  # `_prefix` reports it, and their tokens are not counted as the run's
    if data is not None and data.part[0] < data.part[1] and not any(file_problems(data, chat=cfg.dataset.chat)):
        yield from sample_problems(data, cfg.model.seq_length, chat=cfg.dataset.chat)


def _text(cfg: ConfigContainer) -> Iterator[Problem]:
    path = cfg.dataset.text_path
    if path is None:
        return
    field = "dataset.text_path"
    if looks_like_hub_name(path):
        why, cure = absent(path, "dataset", "file")
        yield Problem.of(cfg, field, why, f"{cure} to `megatron-kd preprocess`")
    elif not is_text_file(path):
        cure = "convert it, or set dataset.data_path=[PREFIX] if it is tokenised already"
        yield Problem.of(cfg, field, f"must end in one of {', '.join(TEXT_FILES)}", cure)
    elif not os.path.isfile(path):
        yield Problem.of(cfg, field, "there is no such file", "give a text file with one document per line")
    elif not os.access(path, os.R_OK):
        yield Problem.of(cfg, field, "cannot be read", "change its permissions")
    elif os.path.getsize(path) == 0:
        yield Problem.of(cfg, field, "is empty", "give a text file with one document per line")
    if cfg.tokenizer.tokenizer_type == "null":
        cure = "set tokenizer.tokenizer_type=huggingface and tokenizer.tokenizer_model"
        yield Problem.of(cfg, f"{field} tokenizer.tokenizer_type", "the null tokenizer has no text", cure)


def _chat(cfg: ConfigContainer) -> Iterator[Problem]:
    """Settings that go with conversations alone, and those that do not go with them."""
    data = cfg.dataset
    if not data.chat:
        if data.packed_sequence:
            why = "only conversations are packed, text fills its sequences anyway"
            cure = "set dataset.packed_sequence=false, or dataset.chat=true"
            yield Problem.of(cfg, "dataset.packed_sequence dataset.chat", why, cure)
        if data.long_samples != "truncate":
            why = "only conversations can be too long, text is read on"
            cure = "set dataset.long_samples=truncate, or dataset.chat=true"
            yield Problem.of(cfg, "dataset.long_samples dataset.chat", why, cure)
        return
    if data.mock:
        why = "mock data does not contain conversations"
        yield Problem.of(cfg, "dataset.chat dataset.mock", why, "set dataset.chat=false")
    if data.eod_mask_loss:
        why = "of conversations, only what the assistant says is learnt"
        yield Problem.of(cfg, "dataset.chat dataset.eod_mask_loss", why, "set dataset.eod_mask_loss=false")
    if other := differing(data):
        field = "dataset.data_path" if data.data_path is not None else "dataset.train_data_path"
        why = f"{show(other[0])} and {show(other[1])} were made with different chat templates"
        cure = "make both with one (`megatron-kd preprocess --chat-template FILE`): a model is asked in one only"
        yield Problem.of(cfg, field, why, cure)
    if data.text_path is not None and data.text_path.endswith(".txt"):
        names = "dataset.chat dataset.text_path"
        yield Problem.of(cfg, names, "conversations are lines of JSON", "give a .jsonl file")


def _cut_by_split(cfg: ConfigContainer) -> bool:
    return cfg.dataset.data_path is not None or cfg.dataset.text_path is not None


def _split(cfg: ConfigContainer) -> Iterator[Problem]:
    if isinstance(split := parse_split(cfg.dataset.split), Problem):
        yield split


def _share(cfg: ConfigContainer, name: str) -> float | None:
    """The share of the data that a split has; None where it is not cut by shares, or they cannot be read."""
    split = parse_split(cfg.dataset.split)
    return split.share(name) if isinstance(split, Split) and _cut_by_split(cfg) else None


def _validation_data(cfg: ConfigContainer) -> Iterator[Problem]:
    data = cfg.dataset
    if cfg.validation.eval_iters < 1 or data.mock:
        return
    without = "or set validation.eval_iters=0 to do without validation"
    if _share(cfg, "valid") == 0:
        cure = f"make the second number greater than 0, {without}"
        yield Problem.of(cfg, "dataset.split validation.eval_iters", "leaves no data to validate on", cure)
    if data.train_data_path is not None and data.valid_data_path is None:
        cure = f"set dataset.valid_data_path, {without}"
        names = "dataset.valid_data_path validation.eval_iters"
        yield Problem.of(cfg, names, "there is no data to validate on", cure)
    yield from _samples(cfg, "valid")


def _tokenizer(cfg: ConfigContainer) -> Iterator[Problem]:
    model, kind = cfg.tokenizer.tokenizer_model, cfg.tokenizer.tokenizer_type
    if kind == "huggingface" and model is not None and not os.path.exists(model):
        yield _no_such_tokenizer(cfg, "tokenizer.tokenizer_model", model)
    yield from _teacher_tokenizer(cfg)
    named = kind == "huggingface" and model is not None
    if named or (cfg.dataset.mock and true_vocab_size(cfg) is not None):
        return
    if cfg.dataset.mock:
        why = "mock data needs a vocabulary size"
        yield Problem.of(cfg, "dataset.mock model.vocab_size", why, "set model.vocab_size")
    elif kind == "huggingface" and _absent_folder(cfg):
        return
    elif kind == "huggingface":
        cure = "set it to the tokenizer's folder or tokenizer.json, the one the data was made with"
        yield Problem.of(cfg, "tokenizer.tokenizer_model", "there is no tokenizer", cure)
    elif cfg.tokenizer.vocab_size is None:
        why = "the null tokenizer needs the number of ids in the data"
        yield Problem.of(cfg, "tokenizer.tokenizer_type tokenizer.vocab_size", why, "set tokenizer.vocab_size")


def _no_such_tokenizer(cfg: ConfigContainer, field: str, path: str) -> Problem:
    why, cure = absent(path, what="folder or file")
    return Problem.of(cfg, field, why, f"{cure}, or make the tiny recipes' with `make corpus`")


def _absent_folder(cfg: ConfigContainer) -> bool:
    """Whether a model's folder, which may bring a tokenizer, is not there, as reported with the model."""
    return any(model.hf_path is not None and not os.path.isdir(model.hf_path) for _, model in cfg.models.by_field())


def _teacher_tokenizer(cfg: ConfigContainer) -> Iterator[Problem]:
    """It is there to be compared with the student's, so there must be a teacher and a student's."""
    field, path = "tokenizer.teacher_tokenizer_model", cfg.tokenizer.teacher_tokenizer_model
    if path is None:
        return
    if not os.path.exists(path):
        yield _no_such_tokenizer(cfg, field, path)
    if cfg.models.teacher is None:
        yield Problem.of(cfg, field, "this run has no teacher", f"set {field}=null")
    elif cfg.tokenizer.tokenizer_type != "huggingface" or cfg.tokenizer.tokenizer_model is None:
        names = f"{field} tokenizer.tokenizer_type tokenizer.tokenizer_model"
        cure = f"set tokenizer.tokenizer_model, or {field}=null"
        yield Problem.of(cfg, names, "is compared with the student's, which is not given", cure)
