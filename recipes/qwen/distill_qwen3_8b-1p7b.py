"""Distil Qwen3 8B into 1.7B, on one node of eight 80 GB GPUs.

torchrun --nproc_per_node=8 recipes/qwen/distill_qwen3_8b-1p7b.py
torchrun --nproc_per_node=8 recipes/qwen/distill_qwen3_8b-1p7b.py --config-file conf/qwen3_8b-1p7b.yaml
"""

from dataclasses import replace

from qwen_parts import QWEN, adam, folder

from megatron_kd import ConfigContainer, GPTDistillationProvider, main
from megatron_kd.config.sections import TrainConfig
from megatron_kd.models.qwen import qwen3_1p7b, qwen3_8b


def recipe() -> ConfigContainer:
    """20,000 steps of 256 x 4096 tokens: 21 billion."""
    return replace(
        QWEN,
        model=GPTDistillationProvider.from_student(
            qwen3_1p7b(seq_length=4096, hf_path="models/Qwen3-1.7B"),
            teacher=qwen3_8b(seq_length=4096, hf_path="models/Qwen3-8B"),
        ),
        train=TrainConfig(train_iters=20_000, global_batch_size=256, micro_batch_size=2),
        optimizer=adam(1e-4),
        logger=folder("qwen3_8b-1p7b"),
    )


if __name__ == "__main__":
    raise SystemExit(main(recipe))
