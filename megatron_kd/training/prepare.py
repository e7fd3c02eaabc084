"""What a run does before it builds anything: text becomes tokens, and what only the start can tell becomes numbers."""

from __future__ import annotations

from pathlib import Path

from megatron_kd.config.container import ConfigContainer
from megatron_kd.config.problems import problems
from megatron_kd.config.settled import settled, with_tokens_at
from megatron_kd.data.chat_datasets import training_rows
from megatron_kd.data.datasets import training_tokens
from megatron_kd.data.text import tokenised
from megatron_kd.data.tokenizer import Tokenizer
from megatron_kd.errors import ConfigError
from megatron_kd.runtime.layout import Layout
from megatron_kd.runtime.rank0 import on_rank_0


def prepare(cfg: ConfigContainer, layout: Layout, tokenizer: Tokenizer) -> ConfigContainer:
    """`cfg` as it is run: its text tokenised, its batch and its length as numbers. All ranks must call this.

    Raises:
        InputError: text that cannot be tokenised.
        ConfigError: epochs that do not fill one batch, or a schedule that does not fit into what they come to.
    """
    text, given = cfg.dataset.text_path, cfg
    if text is not None:
        folder = Path(cfg.logger.run_dir) / "data"
        chat = cfg.dataset.chat
        cfg = with_tokens_at(cfg, on_rank_0(lambda: tokenised(text, folder, tokenizer, chat=chat)))
    data, seq_length = cfg.dataset, cfg.model.seq_length
    count = (lambda: training_rows(data, seq_length)) if data.chat else (lambda: training_tokens(data))
    cfg = settled(cfg, layout.world_size, count)
    if cfg is not given and (wrong := problems(cfg, layout.world_size)):
        raise ConfigError(wrong)
    return cfg
