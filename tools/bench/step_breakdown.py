"""Where a training step's time goes: tokens/s from the first step to the last, and the share of each part.

    python tools/bench/step_breakdown.py
    python tools/bench/step_breakdown.py --mid-size --steps 20
    torchrun --nproc_per_node=2 tools/bench/step_breakdown.py \
        model.tensor_model_parallel_size=2 model.teacher.tensor_model_parallel_size=2

Runs a recipe (`--recipe`, the tiny distillation) with its overrides, random weights for the teacher, no checkpoints
and no evaluation, and times it from outside, with a hook of the loop: by the phases that a step reports, and inside
them by hooks on teacher and student. A part's time is its own, without the parts inside it; on CUDA the device is
synchronised at every boundary, which costs some overlap.
`--mid-size` makes it teacher 8 x 512, student 4 x 256, V = 32768 and 4 mock sequences of 512 tokens per step.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from unittest import mock

import torch
from megatron.core.pipeline_parallel import schedules

from megatron_kd.errors import ConfigError, MegatronKDError
from megatron_kd.resolve.configuration import load_config
from megatron_kd.resolve.recipe_files import load_recipe
from megatron_kd.teachers.in_pipeline import ColocatedTeacher
from megatron_kd.training.hooks.hook import Hook, Loop
from megatron_kd.training.run_state import Run
from megatron_kd.training.train import train

_BENCH = (
    "checkpoint.save=false",
    "checkpoint.resume=never",
    "validation.eval_iters=0",
    "logger.progress=off",
    "logger.tensorboard=false",
    "logger.log_interval=1",
    "logger.run_dir=runs/bench/step_breakdown",
)
_MID_SIZE = (
    "dataset={train_data_path: null, valid_data_path: null, mock: true}",
    "tokenizer.tokenizer_model=null",
    "train.global_batch_size=4",
    "train.micro_batch_size=4",
    *("model.num_layers=4", "model.hidden_size=256", "model.ffn_hidden_size=704"),
    *("model.teacher.num_layers=8", "model.teacher.hidden_size=512", "model.teacher.ffn_hidden_size=1408"),
    *(f"model{of}.{name}" for of in ("", ".teacher") for name in ("seq_length=512", "vocab_size=32768")),
    *(f"model{of}.init_method_std=0.02" for of in ("", ".teacher")),
)
_RANDOM_TEACHER = ("model.teacher.checkpoint=null", "model.teacher.init=random")
_MODELS = ("teacher forward", "student forward", "fused head and loss", "student backward", "optimizer step")
_LOOP = "loop, logging, progress"
_GLUE = "schedule, losses, glue"
# Names of phases whose time excludes the parts inside them; others keep their own name.
_PHASES = {
    "reading data": "reading the batch",
    "forward and backward": _GLUE,
    "adding up the losses": "reducing what is reported",
}
_WARM_UP = 5  # steps left out of the shares: first allocations, lazily made communicators


class Clock:
    """Adds up the time of named parts. Parts nest; time inside an inner part counts for the inner part only."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._stack: list[str] = []
        self._mark = time.perf_counter()

    def enter(self, part: str) -> None:
        """From here on, time is `part`'s."""
        self._charge()
        self._stack.append(part)

    def leave(self) -> None:
        """From here on, time is the surrounding part's again."""
        self._charge()
        self._stack.pop()

    def start(self) -> None:
        """Forget what was added up so far, and begin to count."""
        self._charge()
        self.seconds.clear()

    def stop(self) -> None:
        """Count no more."""
        self._charge()
        self._stack.append("stopped")

    def total(self) -> float:
        """All seconds counted."""
        return sum(self.seconds.values())

    def timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, with its time counted as `part`'s."""

        def wrapper(*args: Any, **kwargs: Any) -> Any:
            self.enter(part)
            try:
                return function(*args, **kwargs)
            finally:
                self.leave()

        return wrapper

    def _charge(self) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now = time.perf_counter()
        self.seconds[self._stack[-1] if self._stack else _LOOP] += now - self._mark
        self._mark = now


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark, print the table on rank 0, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--recipe", default="recipes/tiny/distill_tiny.py")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--mid-size", action="store_true", help="of the tiny distillation: see above")
    args, overrides = parser.parse_known_args(argv)
    if args.steps <= _WARM_UP:
        parser.error(f"--steps {args.steps}: must be more than the {_WARM_UP} steps of warming up")
    try:
        recipe = load_recipe(args.recipe)
        random_teacher = _RANDOM_TEACHER if hasattr(recipe().model, "teacher") else ()
        size = _MID_SIZE if args.mid_size else ()
        bench = [*_BENCH, *random_teacher, *size, f"train.train_iters={args.steps}"]
        cfg = load_config(recipe, [*bench, *overrides])
        clock = Clock()
        timed = _Timed(clock)
        with mock.patch.object(schedules, "backward_step", clock.timed("student backward", schedules.backward_step)):
            train(cfg, [timed])
    except MegatronKDError as error:
        for line in error.lines if isinstance(error, ConfigError) else [str(error)]:
            print(f"error: {line}", file=sys.stderr)
        return error.exit_code
    if timed.is_main_rank:
        print(report(clock, timed.tokens_per_second, args.steps - _WARM_UP, timed.tokens))
    return 0


def report(clock: Clock, tokens_per_second: Sequence[float], steps: int, tokens: int) -> str:
    """The table: logged tokens/s, then each part's time a step and its share of the time from step to step."""
    total = clock.total()
    lines = [
        f"logged tokens/s: first step {tokens_per_second[0]:.0f}, median {statistics.median(tokens_per_second):.0f}, "
        f"last step {tokens_per_second[-1]:.0f}",
        f"tokens/s over {steps} steps, all included: {steps * tokens / total:.0f}",
        "",
        "| part | ms per step | share |",
        "| --- | ---: | ---: |",
    ]
    others = sorted(set(clock.seconds) - set(_MODELS), key=lambda part: -clock.seconds[part])
    rest = sum(clock.seconds[part] for part in others)
    rows = [(part, clock.seconds[part]) for part in _MODELS if clock.seconds[part]]
    rows += [("everything else", rest), *((f"- {part}", clock.seconds[part]) for part in others)]
    lines += [f"| {part} | {1000 * value / steps:.2f} | {100 * value / total:.1f}% |" for part, value in rows]
    return "\n".join(lines)


class _Timed(Hook):
    """Times the parts of every step of a run, and keeps what it logs."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.tokens_per_second: list[float] = []
        self.tokens = 0
        self.is_main_rank = False
        self._in_a_step = False

    def before_run(self, loop: Loop) -> None:
        self.is_main_rank = loop.run.layout.rank == 0
        self._time_phases(loop.run)
        _time_modules(loop.run, self._clock)

    def before_step(self, loop: Loop) -> None:
        if loop.run.step == _WARM_UP:
            self._clock.start()
        self._in_a_step = True
        self._clock.enter(_GLUE)

    def after_step(self, loop: Loop, values: Mapping[str, float]) -> None:
        self._clock.leave()
        self._in_a_step = False
        self.tokens_per_second.append(values["tokens_per_second"])
        self.tokens = int(values["tokens"])

    def close(self, loop: Loop, error: BaseException | None) -> None:
        self._clock.stop()

    def _time_phases(self, run: Run) -> None:
        """Charge the time of a step to the phase that it reports to be in."""
        teacher = _GLUE if isinstance(run.teacher, ColocatedTeacher) else "teacher forward"  # and the hand-over
        parts = {**_PHASES, "teacher hand-over": teacher}
        enter = run.doing.enter

        def enter_and_charge(phase: str, step: int | None = None) -> None:
            enter(phase, step)
            if self._in_a_step:
                self._clock.leave()
                self._clock.enter(parts.get(phase, phase))

        run.doing.enter = enter_and_charge  # type: ignore[method-assign]


def _time_modules(run: Run, clock: Clock) -> None:
    """Time what this run's own objects do inside the phases."""
    modules = {"student forward": run.students[0]}
    if isinstance(run.teacher, ColocatedTeacher):
        modules["teacher forward"] = run.teacher.model
    for part, module in modules.items():
        module.register_forward_pre_hook(lambda *_, part=part: clock.enter(part))
        module.register_forward_hook(lambda *_: clock.leave())
    if run.students[0].head_function is not None:
        run.students[0].head_function = clock.timed("fused head and loss", run.students[0].head_function)
    run.chunks[0].zero_grad_buffer = clock.timed("zeroing gradients", run.chunks[0].zero_grad_buffer)


if __name__ == "__main__":
    sys.exit(main())
