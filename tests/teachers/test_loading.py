"""Memory of a rank while its teacher is loaded, in bytes of live tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from megatron_kd.config.container import ConfigContainer
from megatron_kd.config.gpt_model import GPTModelProvider
from tests.ranks import run_ranks
from tests.teachers.built import built_teacher, student_layout
from tests.teachers.test_strategies import placed_config
from tests.tiny import STUDENT, VOCAB, tiny_config, train_and_read
from tools.bench.allocations import AllocationCounter

pytestmark = pytest.mark.slow  # whole runs on several ranks

TEACHER = GPTModelProvider(
    num_layers=12, hidden_size=128, num_attention_heads=4, num_query_groups=2, ffn_hidden_size=256,
    seq_length=STUDENT.seq_length, vocab_size=VOCAB, init="random",
)  # fmt: skip
READ = 2 * 4 * 256 * 128  # bytes of two of the checkpoint's largest tensors: torch reads the next before it drops one
LAYER = 2 * (256 * 128 + 128 * 128 + 512 * 128 + 128 * 256)  # bytes of a layer's matrices in bfloat16


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher of float32, saved by one rank."""
    cfg = tiny_config(tmp_path_factory.mktemp("teacher"), iters=1, save=True, save_interval=1, distilled=False)
    cfg.model = TEACHER
    run_ranks(1, train_and_read, cfg)
    return Path(cfg.logger.run_dir)


def bytes_while_loading(cfg: ConfigContainer) -> tuple[int, int]:
    """On a rank: the peak while the teacher is built, and what stays."""
    layout = student_layout(cfg)
    with AllocationCounter() as counter:
        teacher = built_teacher(cfg, layout)
        peak = counter.peak_bytes
    memory = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for _, t in teacher.tensors()}
    return peak, sum(memory.values())


PLACES: dict[str, tuple[int, dict[str, Any], dict[str, Any]]] = {
    "balanced": (4, {"micro_batch_size": 2}, {"strategy": "balanced", "tp": 2, "pp": 2}),
    "gpu0": (2, {"tp": 2}, {"strategy": "gpu0", "rank": 1}),
    "cpu": (2, {"micro_batch_size": 4}, {"strategy": "cpu"}),
    "colocated": (2, {"tp": 2}, {"strategy": "colocated", "tp": 2}),
}


@pytest.mark.parametrize("quantization", [None, "int8"])
@pytest.mark.parametrize("place", PLACES)
def test_a_rank_never_holds_more_than_its_teacher_and_what_is_being_read(
    place: str, quantization: Any, checkpoint: Path, tmp_path: Path
) -> None:
    world_size, student, teacher = PLACES[place]
    cfg = placed_config(tmp_path, student, teacher)
    for name in ("num_layers", "hidden_size", "ffn_hidden_size"):
        setattr(cfg.model.teacher, name, getattr(TEACHER, name))
    cfg.model.teacher.init, cfg.model.teacher.checkpoint = None, str(checkpoint)
    cfg.model.teacher_dtype, cfg.model.teacher_quantization = "bfloat16", quantization
    layer = 1.15 * LAYER / teacher.get("tp", 1) if quantization else 0
    for peak, final in run_ranks(world_size, bytes_while_loading, cfg):
        assert peak <= final + READ + layer + 4096
