"""Measures how the package is put together.

    python -m tools.structure                 # this checkout
    python -m tools.structure --frames        # and the frames between a recipe and the student's forward
    python -m tools.structure OTHER_CHECKOUT  # to compare with

A room is a folder directly below `megatron_kd`. Circles are counted by the imports at the top of modules, as Python
runs them; imports in functions are held by the contracts in `pyproject.toml` (`make check`).
"""

from __future__ import annotations

import argparse
import ast
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

PACKAGE = "megatron_kd"

# Runs a distillation of two tiny models in one process and prints the package's frames at the student's first forward.
_FRAMES = """
import sys, tempfile, traceback
from pathlib import Path
from megatron_kd import ConfigContainer, GPTDistillationProvider, GPTModelProvider, main
from megatron_kd.config.sections import CheckpointConfig, DatasetConfig, LoggerConfig, TrainConfig, ValidationConfig
from megatron_kd.models.gpt import DistillableGPTModel

sizes = dict(num_layers=1, hidden_size=32, num_attention_heads=2, seq_length=16, vocab_size=128, init="random")
forward, package = DistillableGPTModel.forward, str(Path(sys.modules["megatron_kd"].__file__).parent)

def printing(self, *args, **kwargs):
    frames = [frame for frame in traceback.extract_stack()[:-1] if frame.filename.startswith(package)]
    if self.training:
        print("FRAMES", *(frame.name for frame in frames))
    return forward(self, *args, **kwargs)

DistillableGPTModel.forward = printing
model = GPTDistillationProvider(**sizes, teacher=GPTModelProvider(**sizes), teacher_device_strategy="gpu0")
main(lambda: ConfigContainer(
    model=model,
    train=TrainConfig(train_iters=1, global_batch_size=1),
    validation=ValidationConfig(eval_iters=0),
    dataset=DatasetConfig(mock=True),
    checkpoint=CheckpointConfig(save=False),
    logger=LoggerConfig(run_dir=tempfile.mkdtemp(), tensorboard=False, progress="off"),
), [])
"""


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", nargs="?", type=Path, default=Path(), help="the folder that holds megatron_kd (.)")
    parser.add_argument("--frames", action="store_true", help="run a tiny distillation and count its frames")
    args = parser.parse_args()
    for name, value in measure(args.checkout).items():
        print(f"{name:<34} {value}")
    if args.frames:
        frames = own_frames(args.checkout)
        print(f"{'own frames to the student forward':<34} {len(frames)}: {' > '.join(frames)}")


def measure(checkout: Path) -> dict[str, str]:
    """Figures of the package in `checkout`, by name."""
    modules = _modules(checkout)
    repeated = repeated_stems(modules.values())
    lines = [len(path.read_text(encoding="utf-8").splitlines()) for path in modules.values()]
    return {
        "modules": str(len(modules)),
        "lines": f"{sum(lines)} (longest module {max(lines)})",
        "rooms": str(len({_room(name) for name in modules if _room(name)})),
        "rooms in circles": _listed(circles(room_imports(modules))),
        "stems that name several modules": _listed(repeated),
    }


def repeated_stems(paths: Iterable[Path]) -> list[str]:
    """The names that more than one module has, sorted; `__init__` and `__main__` aside."""
    counts = Counter(path.stem for path in paths if not path.stem.startswith("__"))
    return sorted(stem for stem, count in counts.items() if count > 1)


def room_imports(modules: Mapping[str, Path]) -> dict[str, set[str]]:
    """The rooms that each room imports at the top of its modules, given as files by dotted name."""
    found: dict[str, set[str]] = {}
    for name, path in modules.items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in tree.body:
            for imported in _imported(node):
                target = _room(_module_of(imported, modules))
                if target and _room(name) and target != _room(name):
                    found.setdefault(_room(name), set()).add(target)
    return found


def circles(imports: Mapping[str, set[str]]) -> list[str]:
    """The rooms from which a chain of imports leads back to them, sorted."""
    return sorted(room for room in imports if room in _reached(room, imports))


def own_frames(checkout: Path) -> list[str]:
    """The package's functions on the stack when a training step calls the student, outermost first."""
    env = {**os.environ, "PYTHONPATH": str(checkout.resolve())}
    run = subprocess.run([sys.executable, "-W", "ignore", "-c", _FRAMES], capture_output=True, text=True, env=env)
    printed = [line.split()[1:] for line in run.stdout.splitlines() if line.startswith("FRAMES")]
    if run.returncode or not printed:
        raise RuntimeError(f"the tiny distillation failed:\n{run.stdout}{run.stderr}")
    return printed[0]


def _modules(checkout: Path) -> dict[str, Path]:
    paths = sorted((checkout / PACKAGE).rglob("*.py"))
    return {
        ".".join(path.relative_to(checkout).with_suffix("").parts).removesuffix(".__init__"): path for path in paths
    }


def _room(module: str) -> str:
    """The room that a module is in; empty for the package's own top-level modules."""
    parts = module.split(".")
    return parts[1] if len(parts) > 2 else ""


def _imported(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    if isinstance(node, ast.ImportFrom) and node.module:
        yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _module_of(name: str, modules: Mapping[str, Path]) -> str:
    """The module that an imported name is or is defined in; empty for one of another package."""
    while name and name not in modules:
        name = name.rpartition(".")[0]
    return name


def _reached(room: str, imports: Mapping[str, set[str]]) -> set[str]:
    seen: set[str] = set()
    waiting = [room]
    while waiting:
        new = imports.get(waiting.pop(), set()) - seen
        seen |= new
        waiting += new
    return seen


def _listed(names: list[str]) -> str:
    return f"{len(names)}{': ' if names else ''}{' '.join(names)}"


if __name__ == "__main__":
    main()
