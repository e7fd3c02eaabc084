"""SentencePiece `.model` files as fast tokenizers, by the converters of `transformers`.

The converters stand for model families, and a family's choices (how text is normalised, what stands for unknown bytes)
are not in every model trained with SentencePiece. So a conversion is taken only if it agrees with SentencePiece.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_kd.data.tokens.tokenizer_files import TEMPLATE, TokenizerFiles
from megatron_kd.errors import InputError

if TYPE_CHECKING:
    from sentencepiece import SentencePieceProcessor
    from transformers import PreTrainedTokenizerFast

MODEL_NAMES = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model")
# Words, numbers, case, capitals, other scripts, bytes that no vocabulary has, and spaces in all places.
_PROBES = (
    "the quick brown fox jumps over 12,345 lazy dogs.",
    "Hello, World! It's 3:45 p.m. (UTC+2) -- isn't it?",
    "def f(x):\n    return {'a': x ** 2}  # twice",
    "déjà vu, Ærøskøbing, Straße, 漢字かな交じり文, Привет, עברית",
    "🙂 and ﬁne ½ \uff26\uff55ll",
    "  two  spaces   three\ttab",
    "a",
)


def sentencepiece_file(path: Path) -> Path | None:
    """The SentencePiece file that `path` is or, where it is a folder without `tokenizer.json`, has."""
    if path.is_dir():
        files = [] if (path / "tokenizer.json").exists() else [path / name for name in MODEL_NAMES]
        return next((file for file in files if file.is_file()), None)
    return path if path.suffix == ".model" else None


def load_sentencepiece(path: Path, field: str) -> TokenizerFiles:
    """The fast tokenizer that gives the ids of the SentencePiece model in a file.

    Its chat template, if it is to have one, is in `chat_template.jinja` beside it.

    Raises:
        InputError: no such model, or one that no converter reproduces.
    """
    from sentencepiece import SentencePieceProcessor

    try:
        model = SentencePieceProcessor(model_file=str(path))
    except (OSError, RuntimeError) as error:
        raise InputError(f"{field}={str(path)!r} is not a SentencePiece model: copy it again") from error
    reasons = []
    for name, tokenizer in _conversions(path, model):
        wrong = _disagreement(tokenizer, model)
        if wrong is None:
            return TokenizerFiles(tokenizer.backend_tokenizer, tokenizer.special_tokens_map, _templates(path), {})
        reasons.append(f"as {name}: {wrong}")
    raise InputError(
        f"{field}={str(path)!r}: no fast tokenizer gives the ids of this SentencePiece model "
        f"({'; '.join(reasons[:2])}); give the model's own Hugging Face tokenizer folder"
    )


def _conversions(path: Path, model: SentencePieceProcessor) -> Iterator[tuple[str, PreTrainedTokenizerFast]]:
    from transformers import LlamaTokenizerFast, T5TokenizerFast

    ids = {"unk_token": model.unk_id(), "bos_token": model.bos_id(), "eos_token": model.eos_id()}
    special: dict[str, Any] = {name: model.id_to_piece(i) if i >= 0 else None for name, i in ids.items()}
    pad = model.id_to_piece(model.pad_id()) if model.pad_id() >= 0 else None
    for prefix in (True, False):  # whether text begins as if a space came before it
        special |= {"vocab_file": str(path), "legacy": True, "add_prefix_space": prefix}
        yield "Llama", LlamaTokenizerFast(add_bos_token=False, **special)
        yield "T5", T5TokenizerFast(extra_ids=0, pad_token=pad, **special)


def _disagreement(tokenizer: PreTrainedTokenizerFast, model: SentencePieceProcessor) -> str | None:
    """The first difference between the two; None if they agree."""
    vocabulary = tokenizer.get_vocab()
    if len(vocabulary) != model.get_piece_size():
        return f"{len(vocabulary)} tokens instead of {model.get_piece_size()}"
    for probe in _PROBES:
        ids = tokenizer.backend_tokenizer.encode(probe, add_special_tokens=False).ids
        if ids != model.encode(probe):
            return f"other ids for {probe!r}"
    return None


def _templates(path: Path) -> dict[str, str]:
    template = path.parent / TEMPLATE
    return {"default": template.read_text(encoding="utf-8")} if template.is_file() else {}
