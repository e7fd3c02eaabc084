"""Distil Llama 3.1 70B into 8B, on eight nodes of eight 80 GB GPUs.

torchrun --nnodes=8 --nproc_per_node=8 recipes/llama/distill_llama31_70b-8b.py
"""

from dataclasses import replace

from llama_parts import LLAMA3, adam, folder

from megatron_kd import ConfigContainer, GPTDistillationProvider, main
from megatron_kd.config.sections import TrainConfig
from megatron_kd.models.llama import llama31_8b, llama31_70b


def recipe() -> ConfigContainer:
    """10,000 steps of 512 x 4096 tokens: 21 billion.

    The teacher gives no parallel sizes: `balanced` spreads one copy of it over all ranks.
    """
    return replace(
        LLAMA3,
        model=GPTDistillationProvider.from_student(
            llama31_8b(
                seq_length=4096,
                hf_path="models/Llama-3.1-8B",
                tensor_model_parallel_size=2,
                sequence_parallel=True,
            ),
            teacher=llama31_70b(seq_length=4096, hf_path="models/Llama-3.1-70B"),
        ),
        train=TrainConfig(train_iters=10_000, global_batch_size=512, micro_batch_size=1),
        optimizer=adam(5e-5),
        logger=folder("llama31_70b-8b"),
    )


if __name__ == "__main__":
    raise SystemExit(main(recipe))
