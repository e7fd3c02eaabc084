"""Distil Llama 3.2 1B into its own FP8 copy, on one 80 GB GPU: quantisation-aware distillation.

torchrun --nproc_per_node=1 recipes/llama/quantize_distill_llama32_1b.py
torchrun --nproc_per_node=8 recipes/llama/quantize_distill_llama32_1b.py --config-file conf/quantize_llama32_1b.yaml
"""

from dataclasses import replace

from llama_parts import LLAMA3, adam, folder

from megatron_kd import ConfigContainer, GPTDistillationProvider, ModelOptDistillConfig, main
from megatron_kd.config.sections import TrainConfig
from megatron_kd.models.llama import llama32_1b


def recipe() -> ConfigContainer:
    """2,000 steps of 64 x 4096 tokens: 0.5 billion. `model.quantization` may also be int8 or int4_weight_only."""
    return replace(
        LLAMA3,
        model=GPTDistillationProvider.from_student(
            llama32_1b(seq_length=4096, hf_path="models/Llama-3.2-1B", quantization="fp8"),
            teacher=llama32_1b(seq_length=4096, hf_path="models/Llama-3.2-1B"),
            kd_config=ModelOptDistillConfig(intermediate_layer_pairs=[]),
        ),
        train=TrainConfig(train_iters=2_000, global_batch_size=64, micro_batch_size=2),
        optimizer=adam(1e-5),
        logger=folder("llama32_1b-fp8"),
    )


if __name__ == "__main__":
    raise SystemExit(main(recipe))
