"""Settings that the tiny recipes share: both models, the text, and how the student is trained.

The text and its tokenizer are made by `make corpus`; the teacher by `recipes/tiny/pretrain_tiny.py`; the pruned student
by `megatron-kd prune`, see `distill_pruned_tiny.py`.
"""

from dataclasses import replace

from megatron_kd import GPTModelProvider
from megatron_kd.config.sections import (
    CheckpointConfig,
    DatasetConfig,
    OptimizerConfig,
    RNGConfig,
    SchedulerConfig,
    TokenizerConfig,
    TrainConfig,
    ValidationConfig,
)

TEACHER_RUN = "runs/tiny/seed1/teacher"

# 2.6 and 0.6 million parameters with the corpus's 2048 tokens. Models this narrow need more than std 0.02.
TEACHER = GPTModelProvider(
    num_layers=4, hidden_size=192, ffn_hidden_size=512, num_attention_heads=4, seq_length=128, init_method_std=0.05
)
STUDENT = GPTModelProvider(
    num_layers=2, hidden_size=96, ffn_hidden_size=256, num_attention_heads=4, seq_length=128, init_method_std=0.05
)

# The model that `megatron-kd prune` makes of the teacher: 1.3 million parameters, with the teacher's heads.
PRUNED = replace(TEACHER, num_layers=3, hidden_size=128, ffn_hidden_size=384, kv_channels=48)
PRUNED_RUN = "runs/tiny/seed1/pruned"

TEXT = DatasetConfig(train_data_path=["data/stdlib/train"], valid_data_path=["data/stdlib/valid"])
TOKENIZER = TokenizerConfig(tokenizer_model="data/stdlib/tokenizer")
VALIDATION = ValidationConfig(eval_interval=50, eval_iters=16)
SEED = RNGConfig(seed=1)

# The distilled student and the one trained on labels alone share these.
STUDENT_TRAIN = TrainConfig(train_iters=250, global_batch_size=16, micro_batch_size=8)
STUDENT_OPTIMIZER = OptimizerConfig(lr=1e-2)
STUDENT_SCHEDULE = SchedulerConfig(lr_warmup_fraction=0.3)
STUDENT_CHECKPOINT = CheckpointConfig(save_interval=125, most_recent_k=2)

# The pruned student starts from part of the teacher, so it needs fewer steps.
PRUNED_TRAIN = TrainConfig(train_iters=60, global_batch_size=16, micro_batch_size=8)
PRUNED_SCHEDULE = SchedulerConfig(lr_warmup_fraction=0.1)
PRUNED_VALIDATION = replace(VALIDATION, eval_interval=30)
