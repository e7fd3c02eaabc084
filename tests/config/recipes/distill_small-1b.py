"""A small distillation on mock data, for the tests. Its name has a dash, as names of recipes do."""

from megatron_kd.config.container import ConfigContainer
from megatron_kd.config.gpt_distillation import GPTDistillationProvider
from megatron_kd.config.gpt_model import GPTModelProvider
from megatron_kd.config.sections import DatasetConfig, TrainConfig


def recipe() -> ConfigContainer:
    """Two models of 8 heads that differ in depth and width."""
    teacher = GPTModelProvider(num_layers=8, hidden_size=128, num_attention_heads=8, vocab_size=1000, init="random")
    student = GPTModelProvider(num_layers=4, hidden_size=64, num_attention_heads=8, vocab_size=1000, init="random")
    return ConfigContainer(
        model=GPTDistillationProvider.from_student(student, teacher=teacher),
        train=TrainConfig(global_batch_size=8, micro_batch_size=2),
        dataset=DatasetConfig(mock=True),
    )
