"""How a run starts: from its configuration to its parts, ready to take the next step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from megatron_kd.config.container import ConfigContainer
from megatron_kd.config.derived import Derived, derived
from megatron_kd.config.run_config import save_run_config
from megatron_kd.runtime.space import not_written
from megatron_kd.runtime.timeouts import set_group_timeouts
from megatron_kd.runtime.together import on_rank_0
from megatron_kd.training.calibrate import calibrate
from megatron_kd.training.prepare import check_files, checked_tokenizer, prepare, ranks_of
from megatron_kd.training.resume import Resumption, resume
from megatron_kd.training.run_data import RunData
from megatron_kd.training.run_folder import alone_in
from megatron_kd.training.run_state import Run, build_run


@contextmanager
def started_run(cfg: ConfigContainer) -> Iterator[tuple[Run, RunData, Resumption]]:
    """This rank's part of the run in the block, where the run stands, what it reads, and where it continues from.

    Process groups, the layout and the run folder are this run's in the block. What is wrong with the input is raised
    before ranks wait for each other, as far as one rank can know.
    """
    tokenizer = checked_tokenizer(cfg)
    check_files(cfg)
    with ranks_of(cfg) as layout, alone_in(Path(cfg.logger.run_dir)):
        cfg = prepare(cfg, layout, tokenizer)
        values = derived(cfg, layout.world_size, tokenizer.vocab_size)
        on_rank_0(partial(_write_config, cfg, values))
        data = RunData(cfg, values, layout, tokenizer)
        run = build_run(cfg, values, layout)
        resumption = resume(run)
        calibrate(run, data.training(0))
        set_group_timeouts(cfg.dist.step_timeout_s)
        yield run, data, resumption


def _write_config(cfg: ConfigContainer, values: Derived) -> None:
    with not_written(values.run_config_file):
        save_run_config(cfg, values.run_config_file)
