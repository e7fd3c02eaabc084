"""`megatron-kd import-hf HF_DIR --output DIR`: a Hugging Face folder as a checkpoint of megatron_kd."""

from __future__ import annotations

import argparse

from megatron_kd.commands.arguments import path

SUMMARY = "make a checkpoint of a Hugging Face folder"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("folder", type=path, metavar="HF_DIR", help="a folder with config.json and safetensors")
    parser.add_argument(
        "--output", required=True, type=path, metavar="DIR", help="the checkpoint's folder; must not be there"
    )


def run(args: argparse.Namespace) -> int:
    """Import, and say where it is."""
    from megatron_kd.huggingface.import_folder import import_hf

    print(f"wrote {import_hf(args.folder, args.output)}")
    return 0
