"""`checkpoint.save_hf`: a run writes its student as Hugging Face folders."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.config.base import lines_of, plain
from tests.huggingface.families import reference_logits
from tests.ranks import run_ranks
from tests.tiny import tiny_config, train_and_read


@pytest.mark.slow  # whole runs on several ranks
@pytest.mark.parametrize(("value", "folders"), [(True, ["iter_0000002"]), ("each", ["iter_0000001", "iter_0000002"])])
def test_a_run_writes_the_last_checkpoint_or_each(value: Any, folders: list[str], tmp_path: Path) -> None:
    cfg = tiny_config(tmp_path, tp=2, iters=2, save=True, save_interval=1, save_hf=value, distilled=False)
    cfg.model = replace(cfg.model, vocab_size=301)
    cfg.tokenizer.vocab_size = 301
    run_ranks(2, train_and_read, cfg)
    assert sorted(p.name for p in (tmp_path / "hf").iterdir()) == folders
    for name in folders:
        assert reference_logits(tmp_path / "hf" / name).shape[-1] == 301


def test_what_cannot_be_written_is_refused_before_the_run() -> None:
    (line,) = lines_of(plain(checkpoint__save_hf=True, checkpoint__save=False))
    assert line.startswith("checkpoint.save_hf=true, checkpoint.save=false: is made of a checkpoint")
    (line,) = lines_of(plain(checkpoint__save_hf=True, model__normalization="LayerNorm"))
    assert "normalization=LayerNorm: exported models have RMSNorm; set checkpoint.save_hf=false" in line
