"""How a run starts: from its configuration to its parts, ready to take the next step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path

from megatron_kd.checks.digests import input_digests
from megatron_kd.checks.inputs import checked_tokenizer
from megatron_kd.config.container import ConfigContainer
from megatron_kd.config.derived import derived
from megatron_kd.runtime.layout import Layout
from megatron_kd.runtime.start import running_ranks
from megatron_kd.runtime.timeouts import set_group_timeouts
from megatron_kd.runtime.together import on_rank_0
from megatron_kd.training.calibrate import calibrate
from megatron_kd.training.resume import Resumption, find_begun, refuse_another_run, resume
from megatron_kd.training.run_data import RunData
from megatron_kd.training.run_folder import accept, alone_in
from megatron_kd.training.run_inputs import check_files, with_known_length
from megatron_kd.training.run_state import Run, build_run


@contextmanager
def started_run(cfg: ConfigContainer) -> Iterator[tuple[Run, RunData, Resumption]]:
    """The parts of the run on this rank, its data, and where it continues from, ready for the next step.

    The block has the process groups, the layout and the run folder. Errors in the input that one rank can find alone
    are raised before ranks wait for each other.
    """
    tokenizer = checked_tokenizer(cfg)
    check_files(cfg)
    with ranks_of(cfg) as layout, alone_in(Path(cfg.logger.run_dir)):
        begun, inputs = find_begun(cfg), on_rank_0(partial(input_digests, cfg))
        saved = None if begun is None else begun.saved
        cfg = with_known_length(cfg, layout, tokenizer, saved)
        if saved is not None:
            refuse_another_run(cfg, saved)  # again, now that its length is known
        values = derived(cfg, layout.world_size, tokenizer.vocab_size)
        data = RunData(cfg, values, layout, tokenizer, begun=saved)
        run = build_run(cfg, values, layout)
        run.inputs = {**inputs, **on_rank_0(partial(input_digests, cfg))}
        resumption = resume(run, begun)
        on_rank_0(partial(accept, run))
        calibrate(run, data.training(0))
        set_group_timeouts(cfg.dist.step_timeout_s)
        yield run, data, resumption


def ranks_of(cfg: ConfigContainer) -> AbstractContextManager[Layout]:
    """Bring up this rank of the run, in its layout, for the block."""
    return running_ranks(
        tensor_model_parallel_size=cfg.model.tensor_model_parallel_size,
        pipeline_model_parallel_size=cfg.model.pipeline_model_parallel_size,
        virtual_pipeline_model_parallel_size=cfg.model.virtual_pipeline_model_parallel_size,
        seed=cfg.rng.seed,
        backend=cfg.dist.distributed_backend,
        timeout_s=cfg.dist.startup_timeout_s,
        num_threads=cfg.dist.num_threads,
    )
