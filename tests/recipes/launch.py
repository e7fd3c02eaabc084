"""Recipes as users start them: through torchrun, in a folder of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

# The Llama recipe's models and data at a size that a test can run, random and made up by name.
_SIZES = {
    "num_layers": 2,
    "hidden_size": 64,
    "ffn_hidden_size": 96,
    "num_attention_heads": 4,
    "num_query_groups": 2,
    "kv_channels": 16,
    "seq_length": 32,
    "vocab_size": 250,
    "init": "random",
}
SMALL_LLAMA = [
    *(f"model.{name}={value}" for name, value in _SIZES.items()),
    *(f"model.teacher.{name}={value}" for name, value in _SIZES.items()),
    "model.teacher.num_layers=4",
    "model.hf_path=null",
    "model.teacher.hf_path=null",
    "dataset.data_path=null",
    "dataset.mock=true",
    "dataset.num_workers=0",
    "tokenizer.tokenizer_model=null",
    "train.train_iters=2",
    "validation.eval_iters=1",
    "logger.tensorboard=false",
]


def checkout(folder: Path) -> Path:
    """A folder with the project's recipes and nothing else: no weights, no data, no earlier runs."""
    (folder / "recipes").symlink_to(ROOT / "recipes")
    return folder


def run_recipe(script: str, words: list[str], cwd: Path) -> int:
    """On a rank: what torchrun starts, on a rank that is there already."""
    from megatron_kd.entry import main
    from megatron_kd.resolve.recipe_files import load_recipe

    os.chdir(cwd)
    return main(load_recipe(Path(script)), words)


def run(words: list[str], cwd: Path, timeout: float = 240, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a Python command line in `cwd`, with this project importable and `variables` in its environment."""
    environment = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    environment |= {"PYTHONPATH": str(ROOT), **variables}
    return subprocess.run(
        [sys.executable, *words], cwd=cwd, env=environment, capture_output=True, text=True, timeout=timeout, check=False
    )


def torchrun(ranks: int, script: str, *words: str, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """`torchrun --nproc_per_node=RANKS SCRIPT WORDS`; `script` may begin with other options of torchrun's."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
    return run([*launcher, *script.split(), *words], cwd, **variables)
