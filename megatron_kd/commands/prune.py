"""`megatron-kd prune TEACHER --output DIR`: a student made of what matters most in a teacher.

    megatron-kd prune runs/tiny/seed1/teacher --output checkpoints/half --data data/stdlib/train \\
        --num-layers 3 --hidden-size 128 --ffn-hidden-size 384
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_kd.commands.arguments import option, path
from megatron_kd.config.sections import DatasetConfig, TokenizerConfig
from megatron_kd.config.text_files import is_text_file
from megatron_kd.huggingface.find_model import find_model

if TYPE_CHECKING:
    from megatron_kd.config.gpt_model import GPTModelProvider
    from megatron_kd.students.prune import Pruned

SUMMARY = "make a student by pruning a teacher in depth and width"

_SIZES = {
    "num_layers": "layers; the rest are dropped whole",
    "hidden_size": "channels of the residual stream",
    "ffn_hidden_size": "channels inside the MLP",
    "num_attention_heads": "query heads, a multiple of the teacher's groups; a head's width stays",
    "num_query_groups": "must be the teacher's: groups are not pruned",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "teacher", type=path, metavar="TEACHER", help="a checkpoint, `checkpoints` or run folder, or a HF folder"
    )
    parser.add_argument(
        "--output", required=True, type=path, metavar="DIR", help="the checkpoint's folder; must not be there"
    )
    for name, about in _SIZES.items():
        parser.add_argument(option(name), type=int, metavar="N", help=f"{about} (the teacher's)")
    parser.add_argument(
        "--data",
        required=True,
        nargs="+",
        type=path,
        metavar="PREFIX",
        help="tokenised text to measure importance on, with or without weights, or one .txt or .jsonl file",
    )
    parser.add_argument(
        "--tokenizer", type=path, metavar="DIR", help="a tokenizer folder or tokenizer.json (the teacher's)"
    )
    parser.add_argument("--calibration-batches", type=int, default=64, metavar="N", help="batches that are read (64)")
    parser.add_argument("--batch-size", type=int, default=8, metavar="N", help="sequences of a batch (8)")
    parser.add_argument("--seq-length", type=int, metavar="N", help="tokens of a sequence (the teacher's seq_length)")
    parser.add_argument("--seed", type=int, default=1234, metavar="N", help="of the order of the data (1234)")
    parser.add_argument(
        "--dtype", default="float32", choices=("float32", "bfloat16"), help="of teacher and student (float32)"
    )


def run(args: argparse.Namespace) -> int:
    """Prune, and say what was made."""
    find_model(args.teacher, "TEACHER")  # a path that is not there is reported before the heavy imports
    from megatron_kd.students.prune import prune, read_teacher
    from megatron_kd.students.prune_problems import Calibration
    from megatron_kd.students.pruned_sizes import Sizes

    teacher = read_teacher(args.teacher)
    calibration = Calibration(
        dataset=_dataset(args.data),
        tokenizer=_tokenizer(args.tokenizer, teacher),
        seq_length=teacher.seq_length if args.seq_length is None else args.seq_length,
        batches=args.calibration_batches,
        batch_size=args.batch_size,
        seed=args.seed,
    )
    sizes = Sizes(**{name: getattr(args, name) for name in _SIZES})
    print(_report(prune(args.teacher, args.output, sizes, calibration, dtype=args.dtype)))
    return 0


def _dataset(entries: list[str]) -> DatasetConfig:
    if len(entries) == 1 and is_text_file(entries[0]):
        return DatasetConfig(text_path=entries[0])
    return DatasetConfig(train_data_path=[*entries])


def _tokenizer(given: str | None, teacher: GPTModelProvider) -> TokenizerConfig:
    """The tokenizer that is named, else the one that the teacher's folder has or its run read."""
    if given is not None:
        return TokenizerConfig(tokenizer_model=given)
    if teacher.hf_path is not None:
        has_one = (Path(teacher.hf_path) / "tokenizer.json").is_file()
        return TokenizerConfig(tokenizer_model=teacher.hf_path if has_one else None)
    from megatron_kd.checkpoints.contents import tokenizer_of

    return tokenizer_of(str(teacher.checkpoint)) or TokenizerConfig()


def _report(pruned: Pruned) -> str:
    """The parameters and layers that are left, and the output folder."""
    before, after = (_parameters(model) for model in (pruned.teacher, pruned.student))
    kept = ", ".join(str(layer) for layer in pruned.depth.kept)
    scores = ", ".join(f"{score:.3g}" for score in pruned.depth.scores)
    return (
        f"parameters: {after:,} of {before:,} ({after / before:.1%})\n"
        f"layers kept, from 0: {kept}, of importance {scores}\n"
        f"wrote {pruned.folder}"
    )


def _parameters(model: GPTModelProvider) -> int:
    from megatron_kd.placement.parameters import shard_parameters

    assert model.vocab_size is not None
    return shard_parameters(model, padded_vocab_size=model.vocab_size).total
