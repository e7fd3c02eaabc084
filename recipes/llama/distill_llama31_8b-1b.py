"""Distil Llama 3.1 8B into Llama 3.2 1B, on one node of eight 80 GB GPUs.

torchrun --nproc_per_node=8 recipes/llama/distill_llama31_8b-1b.py
torchrun --nproc_per_node=8 recipes/llama/distill_llama31_8b-1b.py --config-file conf/llama31_8b-1b.yaml
"""

from dataclasses import replace

from llama_parts import LLAMA3, adam, folder

from megatron_kd import ConfigContainer, GPTDistillationProvider, main
from megatron_kd.config.sections import TrainConfig
from megatron_kd.models.llama import llama31_8b, llama32_1b


def recipe() -> ConfigContainer:
    """20,000 steps of 256 x 4096 tokens: 21 billion."""
    return replace(
        LLAMA3,
        model=GPTDistillationProvider.from_student(
            llama32_1b(seq_length=4096, hf_path="models/Llama-3.2-1B"),
            teacher=llama31_8b(seq_length=4096, hf_path="models/Llama-3.1-8B"),
        ),
        train=TrainConfig(train_iters=20_000, global_batch_size=256, micro_batch_size=2),
        optimizer=adam(1e-4),
        logger=folder("llama31_8b-1b"),
    )


if __name__ == "__main__":
    raise SystemExit(main(recipe))
