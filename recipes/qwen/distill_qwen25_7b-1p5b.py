"""Distil Qwen2.5 7B into 1.5B, on one node of eight 80 GB GPUs.

torchrun --nproc_per_node=8 recipes/qwen/distill_qwen25_7b-1p5b.py
torchrun --nproc_per_node=8 recipes/qwen/distill_qwen25_7b-1p5b.py --config-file conf/qwen25_7b-1p5b.yaml
"""

from dataclasses import replace

from qwen_parts import QWEN, adam, folder

from megatron_kd import ConfigContainer, GPTDistillationProvider, main
from megatron_kd.config.sections import TrainConfig
from megatron_kd.models.qwen import qwen25_1p5b, qwen25_7b


def recipe() -> ConfigContainer:
    """20,000 steps of 256 x 4096 tokens: 21 billion. The losses are over the 151,936 ids that both models have."""
    return replace(
        QWEN,
        model=GPTDistillationProvider.from_student(
            qwen25_1p5b(seq_length=4096, hf_path="models/Qwen2.5-1.5B"),
            teacher=qwen25_7b(seq_length=4096, hf_path="models/Qwen2.5-7B"),
        ),
        train=TrainConfig(train_iters=20_000, global_batch_size=256, micro_batch_size=2),
        optimizer=adam(1e-4),
        logger=folder("qwen25_7b-1p5b"),
    )


if __name__ == "__main__":
    raise SystemExit(main(recipe))
