"""What the tiny recipes share: the two models, the text they read and how they are judged.

The text and its tokenizer are made by `make corpus`; the teacher by `recipes/tiny/pretrain_tiny.py`.
"""

from megatron_kd import GPTModelProvider
from megatron_kd.config.sections import DatasetConfig, TokenizerConfig, ValidationConfig

TEACHER_RUN = "runs/tiny/seed1/teacher"

TEACHER = GPTModelProvider(
    num_layers=4, hidden_size=256, ffn_hidden_size=640, num_attention_heads=4, seq_length=128
)  # fmt: skip
STUDENT = GPTModelProvider(
    num_layers=2, hidden_size=96, ffn_hidden_size=256, num_attention_heads=4, seq_length=128
)  # fmt: skip

TEXT = DatasetConfig(train_data_path=["data/stdlib/train"], valid_data_path=["data/stdlib/valid"])
TOKENIZER = TokenizerConfig(tokenizer_model="data/stdlib/tokenizer")
VALIDATION = ValidationConfig(eval_interval=100, eval_iters=32)
