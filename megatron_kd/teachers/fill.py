"""A teacher's weights, drawn or read into the memory that they are to stay in, each rank its own shards."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial

from megatron.core.dist_checkpointing.mapping import ShardedTensor

from megatron_kd.checkpoints.model_weights import open_weights
from megatron_kd.config.container import ConfigContainer
from megatron_kd.config.gpt_model import GPTModelProvider
from megatron_kd.huggingface.read import HuggingFaceWeights
from megatron_kd.models.gpt import DistillableGPTModel
from megatron_kd.models.int8 import int8_linears
from megatron_kd.models.weights import draw, local_shards

Write = Callable[[list[ShardedTensor]], None]  # gives shards their values; every rank calls it as often


def writer(cfg: ConfigContainer, provider: GPTModelProvider, vocab_size: int) -> Write:
    """The source of a teacher's weights: a checkpoint, a Hugging Face folder, or random initialization.

    `vocab_size` counts its token ids. Every rank must call this: a checkpoint is verified here, once.
    """

    def randomise(shards: list[ShardedTensor]) -> None:
        for shard in shards:
            draw(
                shard,
                seed=cfg.rng.seed + 1,  # not the student's: a teacher of the student's shape would be the student
                std=provider.init_method_std,
                num_layers=provider.num_layers,
                vocab_size=vocab_size,
            )

    if provider.hf_path is not None:
        return HuggingFaceWeights(provider, "model.teacher.hf_path").write
    if provider.checkpoint is None:
        return randomise
    return partial(open_weights(provider.checkpoint, "model.teacher.checkpoint").load_in_place, vocab_size=vocab_size)


def fill(body: DistillableGPTModel | None, others: list[ShardedTensor], write: Write, *, int8_layers: int) -> None:
    """Write a body and `others`. A layer that is kept as int8 is written and quantised before the next is begun.

    So no more of the teacher than one layer is ever there in full precision. Every rank must call this.

    Args:
        body: this rank's part, or None if it has none to write.
        others: what else this rank has to write.
        write: gives shards their values.
        int8_layers: layers of a pipeline stage that are kept as int8, equal on all ranks; 0 without quantisation.
    """
    write((local_shards(body) if body is not None else []) + others)
    for index in range(int8_layers):
        linears = int8_linears(body.decoder.layers[index]) if body is not None else []
        with ExitStack() as stack:
            weights = [stack.enter_context(linear.weight_to_fill()) for linear in linears]
            memory = {weight.untyped_storage().data_ptr() for weight in weights}
            shards = local_shards(body) if body is not None else []
            write([shard for shard in shards if shard.data.untyped_storage().data_ptr() in memory])
