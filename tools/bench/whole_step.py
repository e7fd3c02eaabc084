"""Whole distillation steps beside their parts, and beside a plain transformers + TRL-style step, in one run.

    python tools/bench/whole_step.py
    python tools/bench/whole_step.py --teacher 8x512 --student 4x256 --seq 512 --batch 4 --rounds 7

Prints one table. Each side is a process of its own, which builds its model and then does one step whenever it is
asked: the sides take turns, so that a change of the machine's load hits all, and a side's peak memory is its own.
A side imports what a user of it would. Ratios are medians over rounds, each of one round's own times.

- distillation: this project's trainer (`build_run`, `train_step`), forward KL over the whole vocabulary. Its loss is
  the GKD loss at beta = 0, so that it does the peer's work.
- distillation, defaults: the same with the default layer pair, a cosine of the final norms.
- student, LM loss: the trainer without a teacher.
- teacher's logits: the forward of the same teacher, with all its logits.
- transformers + TRL: Llama models of the same sizes from `transformers`, the loss as in TRL's GKD trainer, AdamW.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

# torch and all that is built on it are imported in the children only: a parent's memory is none of theirs.
ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

DISTILL, DEFAULTS, STUDENT, TEACHER, PEER = "distillation", "defaults", "student", "teacher", "peer"
SIDES = {
    DISTILL: "distillation",
    DEFAULTS: "distillation, defaults",
    STUDENT: "student, LM loss",
    TEACHER: "teacher's logits",
    PEER: "transformers + TRL",
}
_IMPORTS = {PEER: "transformers.models.llama.modeling_llama"}  # the others: the trainer
_MARK = "@bench "  # what a child says to its parent starts with it; everything else on its stdout is noise


@dataclass(frozen=True)
class Sizes:
    """The inputs of both implementations: "layers x hidden" of both models, vocabulary, batch and threads."""

    teacher: str = "8x256"
    student: str = "4x128"
    vocab: int = 32768
    batch: int = 8
    seq: int = 256
    threads: int = 2

    @property
    def tokens(self) -> int:
        """Of a step."""
        return self.batch * self.seq


@dataclass(frozen=True)
class Architecture:
    """A Llama-like model: heads of 64 channels, or one of them; the feed-forward 2.75 times as wide as the model."""

    layers: int
    hidden: int

    @classmethod
    def parse(cls, text: str) -> Architecture:
        """Of "layers x hidden", as in 8x256."""
        layers, hidden = text.lower().split("x")
        return cls(int(layers), int(hidden))

    @property
    def heads(self) -> int:
        """Number of attention heads, without groups."""
        return max(1, self.hidden // 64)

    @property
    def ffn(self) -> int:
        """Inner size of the gated feed-forward layers."""
        return self.hidden * 11 // 4


@dataclass(frozen=True)
class Memory:
    """Of a process, in MB: the most that was resident until all was imported, and until the end."""

    imports: float
    peak: float

    @property
    def increment(self) -> float:
        """The steps' needs beyond the imports."""
        return self.peak - self.imports


@dataclass(frozen=True)
class Measured:
    """Seconds of each round, and memory."""

    seconds: list[float]
    memory: Memory


# ---- the parent ----


class Child:
    """A side's process. `ready` once it has built its models and run its first steps."""

    def __init__(self, side: str, sizes: Sizes, warm_up: int) -> None:
        command = [sys.executable, str(Path(__file__).resolve()), "--child", side, "--rounds", str(warm_up)]
        for name, value in asdict(sizes).items():
            command += [f"--{name}", str(value)]
        environment = {**os.environ, "OMP_NUM_THREADS": str(sizes.threads), "PYTHONWARNINGS": "ignore"}
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self._hear()

    def step(self) -> float:
        """Seconds of one step."""
        return float(self._ask("step"))

    def finish(self) -> Memory:
        """End the process; what memory it needed."""
        memory = Memory(**self._ask("memory"))
        self._process.communicate("end\n")
        return memory

    def kill(self) -> None:
        """End a process that may be doing anything."""
        self._process.kill()
        self._process.communicate()

    def _ask(self, word: str) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write(word + "\n")
        self._process.stdin.flush()
        return self._hear()

    def _hear(self) -> Any:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(_MARK):
                return json.loads(line.removeprefix(_MARK))
        raise SystemExit(f"a process of the benchmark ended with exit code {self._process.wait()}")


def measure(sides: Sequence[str], sizes: Sizes, rounds: int, warm_up: int = 2) -> dict[str, Measured]:
    """Build the sides one after the other, then let them take turns, in an order that turns round every round."""
    with ExitStack() as stack:
        children = {}
        for side in sides:
            children[side] = Child(side, sizes, warm_up)
            stack.callback(children[side].kill)
        seconds: dict[str, list[float]] = {side: [] for side in sides}
        for number in range(rounds):
            for side in sides if number % 2 == 0 else reversed(sides):
                seconds[side].append(children[side].step())
        return {side: Measured(seconds[side], children[side].finish()) for side in sides}


def ratios(over: Sequence[float], *under: Sequence[float]) -> list[float]:
    """Of each round: `over` by the sum of all `under`."""
    return [top / sum(bottom) for top, *bottom in zip(over, *under, strict=True)]


def report(measured: dict[str, Measured], sizes: Sizes) -> str:
    """The table: a row for each side, and below it a row for each goal."""
    lines = [
        f"teacher {sizes.teacher}, student {sizes.student}, V = {sizes.vocab}, batch {sizes.batch} x {sizes.seq} "
        f"tokens, fp32, {sizes.threads} threads; medians (range) of {len(next(iter(measured.values())).seconds)} "
        "rounds; peak RSS with the imports, and beyond them",
        "",
        "| step | seconds | tokens/s | peak RSS, MB | beyond imports, MB |",
        "|---|---:|---:|---:|---:|",
    ]
    for side, (seconds, memory) in ((side, (m.seconds, m.memory)) for side, m in measured.items()):
        rate = "-" if side == TEACHER else f"{sizes.tokens / statistics.median(seconds):,.0f}"
        lines.append(
            f"| {SIDES[side]} | {_spread(seconds, 3)} | {rate} | {memory.peak:,.0f} | {memory.increment:,.0f} |"
        )
    lines += ["| **ratio** | **measured** | **goal** | | |"]
    lines += [f"| {name} | {value} | {goal} | | |" for name, value, goal in _goals(measured)]
    return "\n".join(lines)


def _goals(measured: dict[str, Measured]) -> Iterator[tuple[str, str, str]]:
    ours = measured[DISTILL]
    parts = [measured[side].seconds for side in (TEACHER, STUDENT) if side in measured]
    if len(parts) == 2:
        name = "time / (teacher's logits + student, LM loss)"
        yield f"distillation: {name}", _spread(ratios(ours.seconds, *parts)), "<= 1.10, aim 1.05"
        if DEFAULTS in measured:
            yield f"defaults: {name}", _spread(ratios(measured[DEFAULTS].seconds, *parts)), "-"
    if PEER in measured:
        peer = measured[PEER]
        yield "distillation / peer: tokens/s", _spread(ratios(peer.seconds, ours.seconds)), ">= 1.4, aim 2"
        yield "distillation / peer: peak RSS", f"{ours.memory.peak / peer.memory.peak:.2f}", "<= 0.33"
        beyond = ours.memory.increment / peer.memory.increment if peer.memory.increment else math.nan
        yield "distillation / peer: RSS beyond imports", f"{beyond:.2f}", "-"


def _spread(values: Sequence[float], digits: int = 2) -> str:
    low, middle, high = (f"{v:.{digits}f}" for v in (min(values), statistics.median(values), max(values)))
    return f"{middle} ({low}-{high})"


# ---- the children ----


def serve(side: str, sizes: Sizes, warm_up: int) -> None:
    """Build `side`, run `warm_up` steps of it, and do what the parent says until it says `end`."""
    import torch

    importlib.import_module(_IMPORTS.get(side, "megatron_kd.training.train"))
    imports = peak_rss_mb()
    torch.set_num_threads(sizes.threads)
    torch.manual_seed(0)
    builders = {PEER: peer_step, TEACHER: teacher_logits}
    with ExitStack() as stack:
        step = stack.enter_context(builders.get(side, trainer_step)(side, sizes))
        for _ in range(warm_up):
            step()
        _say(True)
        for line in sys.stdin:
            word = line.strip()
            if word == "step":
                start = time.perf_counter()
                step()
                _say(time.perf_counter() - start)
            elif word == "memory":
                _say(asdict(Memory(imports, peak_rss_mb())))
            else:
                return


def _say(value: Any) -> None:
    print(_MARK + json.dumps(value), flush=True)


def peak_rss_mb() -> float:
    """The most that was resident so far, in MB. Not `getrusage`: that keeps the parent's across an exec."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024 / 1e6


Step = Callable[[], Any]


@contextmanager
def trainer_step(side: str, sizes: Sizes) -> Iterator[Step]:
    """A step of this project's trainer, on mock data."""
    from megatron_kd.training.step import train_step

    with _our_run(sizes, side) as (run, batches):
        yield lambda: train_step(run, batches)


@contextmanager
def teacher_logits(side: str, sizes: Sizes) -> Iterator[Step]:
    """The forward of the distillation's teacher with its logits, [S, B, V]: not copied into another order."""
    import torch

    with _our_run(sizes, side) as (run, batches):
        teacher = run.students[0].requires_grad_(False).eval()
        teacher.head_function = lambda model, hidden_SBH: model.logits(hidden_SBH)

        @torch.no_grad()
        def forward() -> None:
            batch = next(batches)
            teacher(batch.tokens, batch.position_ids, None)

        yield forward


@contextmanager
def _our_run(sizes: Sizes, side: str) -> Iterator[tuple[Any, Iterator[Any]]]:
    """A run of the trainer of this process alone, with random weights, and its micro-batches."""
    from megatron_kd.config.derived import derived
    from megatron_kd.data.loader import micro_batches
    from megatron_kd.data.samples.datasets import build_datasets
    from megatron_kd.data.tokens.tokenizer import load_tokenizer
    from megatron_kd.runtime.start import running_ranks
    from megatron_kd.training.run_state import build_run

    with tempfile.TemporaryDirectory() as folder:
        cfg = config(sizes, side, folder)
        with running_ranks(
            tensor_model_parallel_size=1,
            pipeline_model_parallel_size=1,
            seed=cfg.rng.seed,
            num_threads=sizes.threads,
        ) as layout:
            data, _, _ = build_datasets(
                cfg.dataset,
                seq_length=sizes.seq,
                train_samples=cfg.train.train_iters * sizes.batch,
                valid_samples=0,
                test_samples=0,
                seed=cfg.rng.seed,
                tokenizer=load_tokenizer(cfg.tokenizer),
            )
            batches = micro_batches(
                data,
                start_step=0,
                global_batch_size=sizes.batch,
                micro_batch_size=sizes.batch,
                data_parallel_rank=0,
                data_parallel_size=1,
            )
            yield build_run(cfg, derived(cfg, 1, sizes.vocab), layout), batches


def config(sizes: Sizes, side: str, folder: str) -> Any:
    """The trainer's configuration of one of our sides; the teacher alone is trained as a student would be."""
    from megatron_kd.config.container import ConfigContainer
    from megatron_kd.config.gpt_distillation import GPTDistillationProvider
    from megatron_kd.config.gpt_model import GPTModelProvider
    from megatron_kd.config.kd_config import ModelOptDistillConfig
    from megatron_kd.config.sections import (
        CheckpointConfig,
        DatasetConfig,
        LoggerConfig,
        SchedulerConfig,
        TokenizerConfig,
        TrainConfig,
        ValidationConfig,
    )

    def provider(text: str) -> GPTModelProvider:
        shape = Architecture.parse(text)
        return GPTModelProvider(
            num_layers=shape.layers,
            hidden_size=shape.hidden,
            ffn_hidden_size=shape.ffn,
            num_attention_heads=shape.heads,
            seq_length=sizes.seq,
            vocab_size=sizes.vocab,
            init="random",
        )

    model = provider(sizes.teacher if side == TEACHER else sizes.student)
    if side in (DISTILL, DEFAULTS):
        kd = ModelOptDistillConfig() if side == DEFAULTS else ModelOptDistillConfig(intermediate_layer_pairs=[])
        model = GPTDistillationProvider.from_student(model, teacher=provider(sizes.teacher), kd_config=kd)
    return ConfigContainer(
        model=model,
        train=TrainConfig(train_iters=100_000, global_batch_size=sizes.batch, micro_batch_size=sizes.batch),
        validation=ValidationConfig(eval_interval=0, eval_iters=0),
        scheduler=SchedulerConfig(lr_decay_style="constant"),
        dataset=DatasetConfig(mock=True),
        tokenizer=TokenizerConfig(tokenizer_type="null", vocab_size=sizes.vocab),
        checkpoint=CheckpointConfig(save=False),
        logger=LoggerConfig(run_dir=folder, tensorboard=False, progress="off"),
    )


@contextmanager
def peer_step(side: str, sizes: Sizes) -> Iterator[Step]:
    """A step as TRL's GKD trainer does it on a fixed dataset, in fp32, written with `transformers` alone."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    def llama(text: str) -> LlamaForCausalLM:
        shape = Architecture.parse(text)
        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=sizes.vocab,
                hidden_size=shape.hidden,
                intermediate_size=shape.ffn,
                num_hidden_layers=shape.layers,
                num_attention_heads=shape.heads,
                max_position_embeddings=sizes.seq,
                tie_word_embeddings=False,
            )
        )

    student, teacher = llama(sizes.student).train(), llama(sizes.teacher).eval()
    optimizer = torch.optim.AdamW(student.parameters(), lr=3e-4, weight_decay=0.01)

    def step() -> None:
        tokens_BS = torch.randint(sizes.vocab, (sizes.batch, sizes.seq))
        mask_BS = torch.ones_like(tokens_BS)
        student_BSV = student(input_ids=tokens_BS, attention_mask=mask_BS, use_cache=False).logits
        with torch.no_grad():
            teacher_BSV = teacher(input_ids=tokens_BS, attention_mask=mask_BS, use_cache=False).logits
        loss = gkd_loss(student_BSV[:, :-1], teacher_BSV[:, :-1], tokens_BS[:, 1:])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        loss.item()  # what a trainer logs

    yield step


def gkd_loss(student_BSV: Any, teacher_BSV: Any, labels_BS: Any, temperature: float = 1.0) -> Any:
    """`GKDTrainer.generalized_jsd_loss` of TRL at beta = 0, line by line: KL(teacher || student) a token."""
    import torch.nn.functional as F

    student_BSV = student_BSV / temperature
    teacher_BSV = teacher_BSV / temperature
    student_log_probs_BSV = F.log_softmax(student_BSV, dim=-1)
    teacher_log_probs_BSV = F.log_softmax(teacher_BSV, dim=-1)
    jsd_BSV = F.kl_div(student_log_probs_BSV, teacher_log_probs_BSV, reduction="none", log_target=True)
    mask_BS = labels_BS != -100
    return jsd_BSV[mask_BS].sum() / mask_BS.sum()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark and print its table; as a child process, run one side."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sizes = Sizes()
    for name in ("teacher", "student"):
        parser.add_argument(f"--{name}", default=getattr(sizes, name), metavar="LAYERSxHIDDEN")
    for name in ("vocab", "batch", "seq", "threads"):
        parser.add_argument(f"--{name}", type=int, default=getattr(sizes, name))
    parser.add_argument("--rounds", type=int, default=15, help="steps of each side")
    parser.add_argument("--sides", nargs="+", choices=list(SIDES), default=list(SIDES))
    parser.add_argument("--child", choices=list(SIDES), help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    sizes = Sizes(**{name: getattr(args, name) for name in asdict(sizes)})
    if args.child:
        serve(args.child, sizes, args.rounds)
    elif args.rounds < 1 or DISTILL not in args.sides:
        parser.error(f"--rounds must be positive, and --sides must have {DISTILL}")
    else:
        print(report(measure(args.sides, sizes, args.rounds), sizes))
    return 0


if __name__ == "__main__":
    sys.exit(main())
