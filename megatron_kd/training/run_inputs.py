"""The inputs of a run: tokenised files, text that is tokenised first, and lengths that follow from them."""

from __future__ import annotations

import os
from pathlib import Path

from megatron_kd.checkpoints.saved_run import SavedRun
from megatron_kd.checks import Group, problems
from megatron_kd.config.container import ConfigContainer
from megatron_kd.data.chat.chat_datasets import training_rows
from megatron_kd.data.preprocessing.run_text import tokenised
from megatron_kd.data.samples.datasets import training_tokens
from megatron_kd.data.tokens.blend_files import check_data_files
from megatron_kd.data.tokens.tokenizer import Tokenizer
from megatron_kd.errors import ConfigError
from megatron_kd.resolve.at_start import with_run_length, with_tokens_at
from megatron_kd.runtime.layout import Layout
from megatron_kd.runtime.together import on_rank_0


def check_files(cfg: ConfigContainer) -> None:
    """Check the run's tokenised files. The content of large ones takes time, so one rank alone reads that.

    Raises:
        ConfigError: all that is wrong with them.
    """
    check_data_files(cfg.dataset, hashes=int(os.environ.get("RANK", "0")) == 0)


def with_known_length(
    cfg: ConfigContainer, layout: Layout, tokenizer: Tokenizer, begun: SavedRun | None = None
) -> ConfigContainer:
    """`cfg` as it is run: its text tokenised, its batch and its length as numbers. All ranks must call this.

    `begun` is the run that it continues.

    Raises:
        InputError: text that cannot be tokenised.
        ConfigError: epochs that do not fill one batch, or a schedule that does not fit into what they come to.
    """
    epochs, cfg = cfg.train.num_epochs, with_text_tokenised(cfg, tokenizer)
    data, seq_length = cfg.dataset, cfg.model.seq_length
    count = (lambda: training_rows(data, seq_length)) if data.chat else (lambda: training_tokens(data))
    cfg = with_run_length(cfg, layout.world_size, count, begun)
    if epochs is not None and (wrong := problems(cfg, groups={Group.SCHEDULE})):
        counted = {"train.train_iters": f"counted for train.num_epochs={epochs}"}
        raise ConfigError(problem.located(counted) for problem in wrong)
    return cfg


def with_text_tokenised(cfg: ConfigContainer, tokenizer: Tokenizer) -> ConfigContainer:
    """`cfg` with its text, if it has any, as tokens in the run's folder. All ranks must call this.

    Raises:
        InputError: text that cannot be tokenised.
    """
    text, folder = cfg.dataset.text_path, Path(cfg.logger.run_dir) / "data"
    if text is None:
        return cfg
    return with_tokens_at(cfg, on_rank_0(lambda: tokenised(text, folder, tokenizer, chat=cfg.dataset.chat)))
