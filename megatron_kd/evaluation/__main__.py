"""`megatron-kd evaluate` on several ranks.

torchrun --nproc_per_node=2 -m megatron_kd.evaluation runs/tiny/distilled model.tensor_model_parallel_size=2
"""

from __future__ import annotations

import sys


def _run() -> int:
    from megatron_kd.commands.cli import main  # the commands are above this room

    return main(["evaluate", *sys.argv[1:]])


if __name__ == "__main__":
    raise SystemExit(_run())
