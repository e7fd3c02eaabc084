"""Distil Llama 3.2 3B into 1B, on one or more 80 GB GPUs.

torchrun --nproc_per_node=1 recipes/llama/distill_llama32_3b-1b.py
torchrun --nproc_per_node=8 recipes/llama/distill_llama32_3b-1b.py --config-file conf/llama32_3b-1b.yaml
"""

from dataclasses import replace

from llama_parts import LLAMA3, adam, folder

from megatron_kd import ConfigContainer, GPTDistillationProvider, main
from megatron_kd.config.sections import TrainConfig
from megatron_kd.models.llama import llama32_1b, llama32_3b


def recipe() -> ConfigContainer:
    """20,000 steps of 128 x 4096 tokens: 10.5 billion."""
    return replace(
        LLAMA3,
        model=GPTDistillationProvider.from_student(
            llama32_1b(seq_length=4096, hf_path="models/Llama-3.2-1B"),
            teacher=llama32_3b(seq_length=4096, hf_path="models/Llama-3.2-3B"),
        ),
        train=TrainConfig(train_iters=20_000, global_batch_size=128, micro_batch_size=2),
        optimizer=adam(1e-4),
        logger=folder("llama32_3b-1b"),
    )


if __name__ == "__main__":
    raise SystemExit(main(recipe))
