"""The golden run: 30 steps of a small distillation, whose losses are kept to their last bit.

What a float is to its last bit depends on the order of its sums, hence on the kernel that a library picks for the
processor. Four things hold that still:

- one thread, and no second rank;
- torch's own kernels are chosen by `torch.backends.cpu.get_cpu_capability()`: the losses are kept for each;
- MKL chooses by the processor's maker and model: `MKL_CBWR=COMPATIBLE` has it compute with the one code path that it
  gives the same results with on all of them;
- float32 everywhere: matrices go to MKL then, never to oneDNN, whose kernels (AMX, AVX512-BF16) differ by model.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.tiny import read_metrics, tiny_config

FILE = Path(__file__).with_name("losses.json")
TOP = Path(__file__).resolve().parents[3]
CAPABILITIES = ("avx512", "avx2", "default")  # as ATEN_CPU_CAPABILITY has them
STEPS = 30
NAMES = ("loss", "logits_loss", "intermediate_loss")
_HELD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "MKL_CBWR": "COMPATIBLE", "ONEDNN_MAX_CPU_ISA": "SSE41"}


def losses(folder: Path) -> dict[str, Any]:
    """On the only rank of a process: what the run logs, by name, a hexadecimal float a step, and what it is kept by."""
    import torch

    from megatron_kd.training.train import train

    dropout = {"hidden_dropout": 0.1, "attention_dropout": 0.1}
    cfg = tiny_config(folder, iters=STEPS, micro_batch_size=4, student=dropout)
    cfg.optimizer = replace(cfg.optimizer, lr=3e-3, weight_decay=0.1, clip_grad=1.0)
    cfg.scheduler = replace(cfg.scheduler, lr_decay_style="cosine", lr_warmup_iters=5)
    cfg.dist.num_threads = 1
    train(cfg)
    records = [record for record in read_metrics(folder) if record["split"] == "train"]
    key = f"torch {torch.__version__.partition('+')[0]}, {torch.backends.cpu.get_cpu_capability()}"
    return {"key": key, "losses": {name: [float(record[name]).hex() for record in records] for name in NAMES}}


def computed_elsewhere(capability: str | None = None) -> dict[str, Any]:
    """`losses` of a process of its own, held to one way of computing; libraries read how when they are loaded.

    Args:
        capability: of torch's kernels, at most; what the processor has by default.
    """
    environment = {**os.environ, **_HELD, "PYTHONPATH": str(TOP), "PYTHONWARNINGS": "ignore"}
    if capability is not None:
        environment["ATEN_CPU_CAPABILITY"] = capability
    command = [sys.executable, "-m", "tests.training.golden"]
    done = subprocess.run(command, cwd=TOP, env=environment, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


def kept() -> dict[str, dict[str, list[str]]]:
    """The recorded losses, by torch's version and capability."""
    return json.loads(FILE.read_text())


def compared(key: str) -> tuple[dict[str, list[str]], bool]:
    """The losses to compare a run of that key with, and whether bitwise: if that key was recorded."""
    runs = kept()
    return runs.get(key, next(iter(runs.values()))), key in runs


def record(runs: dict[str, dict[str, list[str]]]) -> None:
    """Keep `runs` in place of what was recorded."""
    FILE.write_text(json.dumps(runs, indent=1) + "\n")
