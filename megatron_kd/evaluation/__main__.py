"""`megatron-kd evaluate` on several ranks.

torchrun --nproc_per_node=2 -m megatron_kd.evaluation runs/tiny/distilled model.tensor_model_parallel_size=2
"""

from __future__ import annotations

import sys

from megatron_kd.cli import main

if __name__ == "__main__":
    raise SystemExit(main(["evaluate", *sys.argv[1:]]))
