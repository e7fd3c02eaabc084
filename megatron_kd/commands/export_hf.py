"""`megatron-kd export-hf CHECKPOINT --output DIR`: a checkpoint as a Hugging Face folder."""

from __future__ import annotations

import argparse
from pathlib import Path

from megatron_kd.checkpoints.contents import best_checkpoint
from megatron_kd.commands.arguments import path

SUMMARY = "make a Hugging Face folder of a checkpoint"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("checkpoint", type=path, metavar="CHECKPOINT", help="a checkpoint, `checkpoints` or run folder")
    parser.add_argument("--best", action="store_true", help="the best validation's checkpoint of the run in CHECKPOINT")
    parser.add_argument(
        "--output", required=True, type=path, metavar="DIR", help="the folder to make; must not be there"
    )
    parser.add_argument(
        "--dtype", default="bfloat16", choices=("bfloat16", "float32", "float16"), help="of the weights"
    )
    parser.add_argument(
        "--tokenizer", type=path, metavar="DIR", help="a tokenizer folder or tokenizer.json (the run's)"
    )
    parser.add_argument("--max-shard-size", default="5GB", metavar="SIZE", help="of one safetensors file (5GB)")


def run(args: argparse.Namespace) -> int:
    """Export, and say where it is."""
    from megatron_kd.huggingface.export import export_hf

    checkpoint = best_checkpoint(Path(args.checkpoint)) if args.best else args.checkpoint
    folder = export_hf(
        checkpoint,
        args.output,
        dtype=args.dtype,
        tokenizer=args.tokenizer,
        max_shard_size=args.max_shard_size,
    )
    print(f"wrote {folder}" + (f" from {checkpoint}" if args.best else ""))
    return 0
