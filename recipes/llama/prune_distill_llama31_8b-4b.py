"""Prune Llama 3.1 8B to 4.5B, and distil it into the result, on one node of eight 80 GB GPUs.

megatron-kd prune models/Llama-3.1-8B --output checkpoints/llama31_8b-4b --data data/llama3/text \
    --hidden-size 3072 --ffn-hidden-size 9216 --seq-length 4096 --dtype bfloat16
torchrun --nproc_per_node=8 recipes/llama/prune_distill_llama31_8b-4b.py
"""

from dataclasses import replace

from llama_parts import LLAMA3, adam, folder

from megatron_kd import ConfigContainer, GPTDistillationProvider, main
from megatron_kd.config.sections import TrainConfig
from megatron_kd.models.llama import llama31_8b


def recipe() -> ConfigContainer:
    """12,000 steps of 256 x 4096 tokens: 12.6 billion. Widths are those of Sreenivas et al. 2024, arXiv:2408.11796."""
    return replace(
        LLAMA3,
        model=GPTDistillationProvider.from_student(
            llama31_8b(
                seq_length=4096,
                hidden_size=3072,
                ffn_hidden_size=9216,
                tensor_model_parallel_size=2,
                sequence_parallel=True,
            ),
            teacher=llama31_8b(
                seq_length=4096,
                hf_path="models/Llama-3.1-8B",
                tensor_model_parallel_size=2,
                sequence_parallel=True,
            ),
        ),
        train=TrainConfig(train_iters=12_000, global_batch_size=256, micro_batch_size=1),
        optimizer=adam(1e-4),
        checkpoint=replace(LLAMA3.checkpoint, pretrained_checkpoint="checkpoints/llama31_8b-4b"),
        logger=folder("llama31_8b-4b"),
    )


if __name__ == "__main__":
    raise SystemExit(main(recipe))
