"""Trains a byte-level BPE tokenizer of a few thousand entries: every text has ids, and decodes to itself."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from megatron_kd.errors import InputError

EOS_TOKEN = "<|endoftext|>"  # always id 0
_SMALLEST = 257  # the 256 bytes and the end of a document


def train_byte_bpe(texts: Iterable[str], vocab_size: int, folder: str | Path) -> int:
    """Train a byte-level BPE on `texts` and save it as a folder that `AutoTokenizer.from_pretrained` loads.

    The same texts in the same order make the same tokenizer. Returns the number of entries, which is
    `vocab_size` unless the texts have fewer pairs to merge.

    Raises:
        InputError: a `vocab_size` that cannot hold the 256 bytes and the end-of-document token.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    if vocab_size < _SMALLEST:
        raise InputError(f"vocab_size={vocab_size}: a byte-level BPE needs at least {_SMALLEST}")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[EOS_TOKEN],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    _save(tokenizer.to_str(pretty=True), Path(folder))
    return tokenizer.get_vocab_size()


def _save(tokenizer_json: str, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(tokenizer_json, encoding="utf-8")
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": EOS_TOKEN,
        "clean_up_tokenization_spaces": False,  # it would change the text that ids decode to
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
