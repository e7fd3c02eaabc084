"""The data of a run on one rank, from the configuration and the rank's position in the layout."""

from __future__ import annotations

from collections.abc import Iterator

from megatron_kd.checkpoints.saved_run import SavedRun
from megatron_kd.checkpoints.saved_state import BY_EPOCH
from megatron_kd.config.container import ConfigContainer
from megatron_kd.config.derived import Derived
from megatron_kd.data.loader import micro_batches
from megatron_kd.data.samples.datasets import build_datasets
from megatron_kd.data.tokens.tokenizer import Tokenizer
from megatron_kd.models.micro_batch import MicroBatch
from megatron_kd.runtime.layout import Layout


class RunData:
    """The data of a run as functions of the samples that it has read."""

    def __init__(
        self,
        cfg: ConfigContainer,
        values: Derived,
        layout: Layout,
        tokenizer: Tokenizer,
        *,
        begun: SavedRun | None = None,
        trains: bool = True,
    ) -> None:
        """Every rank must do so.

        Args:
            begun: the run that this one continues.
            trains: false asks for no training data.
        """
        batch = values.global_batch_size
        step, samples = (0, 0) if begun is None else (begun.state.step, begun.consumed_samples)
        self._train, self._valid, _ = build_datasets(
            cfg.dataset,
            seq_length=cfg.model.seq_length,
            train_samples=samples + max(values.train_iters - step, 0) * batch if trains else 0,
            valid_samples=cfg.validation.eval_iters * batch,
            test_samples=0,
            seed=values.data_seed,
            tokenizer=tokenizer,
            order=BY_EPOCH if begun is None else begun.data_order,
        )
        self._split = {
            "global_batch_size": batch,
            "micro_batch_size": cfg.train.micro_batch_size,
            "data_parallel_rank": layout.dp.rank,
            "data_parallel_size": layout.dp.size,
            "packed": cfg.dataset.packed_sequence,
            "num_workers": cfg.dataset.num_workers,
            "pin_memory": layout.device.type == "cuda",
        }

    def training(self, consumed_samples: int) -> Iterator[MicroBatch]:
        """This rank's micro-batches, from the step that follows `consumed_samples` of the run."""
        return micro_batches(self._train, start_step=0, first_sample=consumed_samples, **self._split)

    def validation(self) -> Iterator[MicroBatch]:
        """This rank's micro-batches of the validation set, always from its first sample."""
        return micro_batches(self._valid, start_step=0, **self._split)
