"""Every field of the configuration is changed on a run that has begun: it is free, takes effect, or is refused.

`on_resume.yaml` says by hand which. What can be run by one rank is run.
"""

from __future__ import annotations

import contextlib
import io
import json
import random
import re
import shutil
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from megatron_kd.config.container import ConfigContainer
from megatron_kd.config.document import write_yaml
from megatron_kd.config.gpt_distillation import GPTDistillationProvider
from megatron_kd.config.on_resume import on_resume
from megatron_kd.config.schema import schema_of
from megatron_kd.config.sections import DatasetConfig
from megatron_kd.config.values import dotted
from megatron_kd.training.pace import MEASURED_TIMES
from tests.data.tokens import write_tokens
from tests.ranks import run_ranks
from tests.tiny import VOCAB, read_metrics, tiny_config

EXPECTED: dict[str, list[Any]] = yaml.safe_load(Path(__file__).with_name("on_resume.yaml").read_text())
STEPS, SAVED, CLOSE = 8, 4, 1e-5
# Free fields whose values one rank cannot run; `tests/training/test_run_checkpoint.py` resumes at other layouts.
NOT_RUN = (
    "tensor_model_parallel_size",
    "pipeline_model_parallel_size",
    "virtual_pipeline_model_parallel_size",
    "context_parallel_size",
    "sequence_parallel",
    "model.teacher.recompute_granularity",
    "model.teacher.recompute_method",
    "model.teacher.recompute_num_layers",
    "model.teacher_rank",
)
REPORTED_AS = {"train.num_epochs": "train.train_iters"}  # epochs are counted in steps
_LLAMA = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 32, "intermediate_size": 64,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 250,
    "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "hidden_act": "silu", "tie_word_embeddings": False,
}  # fmt: skip
_TEACHER = {"num_hidden_layers": 4, "hidden_size": 48, "intermediate_size": 96}


def test_every_field_says_what_is_expected_of_it() -> None:
    schema = schema_of(ConfigContainer(model=GPTDistillationProvider()))
    declared = {dotted(path): on_resume(path, schema.sections).name.lower() for path in schema.leaves}
    assert declared == {name: line[0] for name, line in EXPECTED.items()}


@dataclass
class Ended:
    """How the run with a changed field ended."""

    code: int = -1
    output: str = ""
    records: list[dict[str, Any]] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)


def base(folder: Path) -> ConfigContainer:
    """The run that begins: two epochs of text."""
    cfg = tiny_config(folder, iters=STEPS, save=True, save_interval=SAVED)
    cfg.dataset = DatasetConfig(data_path=[str(folder.parent / "corpus")], split="90,10,0")
    cfg.model = replace(cfg.model, teacher_device_strategy="colocated")
    cfg.scheduler.lr_decay_style = "cosine"
    cfg.logger.progress = "plain"
    return cfg


def write_corpora(folder: Path) -> None:
    """The data of the run, and other data."""
    for number, name in enumerate(("corpus", "other")):
        ids = random.Random(number)
        write_tokens(folder / name, [[ids.randrange(VOCAB) for _ in range(20)] for _ in range(30)])
    (folder / "text.txt").write_text("a text")
    for name, sizes in (("student", {}), ("teacher", _TEACHER)):
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(json.dumps({**_LLAMA, **sizes}))


def walk(folder: Path) -> dict[str, tuple[Ended, list[dict[str, Any]]]]:
    """On a rank: by field, how the changed run ended, and the records of the run without the change."""
    write_corpora(folder)
    begun: dict[str, tuple[Path, list[dict[str, Any]]]] = {}
    found = {}
    for name, (_, value, *more) in EXPECTED.items():
        together, from_start = [*more, {}, {}][:2]
        key = json.dumps(from_start)
        if key not in begun:
            begun[key] = begin(folder, len(begun), filled(from_start, folder))
        run_dir, whole = begun[key]
        change = filled({name: value, **together}, folder)
        found[name] = resumed(name, run_dir, folder / "changed", change, run=not name.endswith(NOT_RUN)), whole
    return found


def begin(folder: Path, number: int, values: Mapping[str, Any]) -> tuple[Path, list[dict[str, Any]]]:
    """Run to the end; keep the checkpoint of `SAVED` steps."""
    from megatron_kd.resolve.configuration import with_arguments
    from megatron_kd.training.train import train

    run_dir = folder / f"begun_{number}"
    train(with_arguments(base(run_dir), ["--config-file", _written(folder / f"begun_{number}.yaml", values)]))
    records = _records(run_dir)
    shutil.rmtree(run_dir / f"checkpoints/iter_{STEPS:07d}")
    return run_dir, records


def resumed(name: str, begun: Path, copies: Path, change: Mapping[str, Any], *, run: bool = True) -> Ended:
    """Resume a copy of the run with a change; where `run` is false, only ask the checks.

    Args:
        name: of the copy in `copies`; where it is `logger.run_dir`, the copy is moved.
        begun: the run's folder.
        copies: a folder.
        change: values by dotted name.
        run: see above.
    """
    from megatron_kd import run as of_a_file
    from megatron_kd.checks.begun import resume_problems
    from megatron_kd.resolve.configuration import config_from_file

    run_dir = Path(shutil.copytree(begun, copies / name))
    before, ended = _files(run_dir), Ended()
    if name == "logger.run_dir":
        change = {name: str(run_dir.rename(run_dir.with_name("moved")))}
        run_dir = Path(change[name])
    change = {"logger.run_dir": str(run_dir), **change}
    words = [str(run_dir / "run_config.yaml"), "--config-file", _written(run_dir.with_suffix(".yaml"), change)]
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(out):
        try:
            if run:
                ended.code = of_a_file.main(words)
            else:
                problems = list(resume_problems(config_from_file(words[0], words[1:]), 1))
                ended.code = 2 if problems else 0
        except Exception:
            traceback.print_exc()
    ended.output = out.getvalue()
    ended.records = _records(run_dir) if run else []
    after = _files(run_dir)
    ended.changed = [path for path in before | after if before.get(path) != after.get(path)]
    return ended


def _written(path: Path, values: Mapping[str, Any]) -> str:
    """A file of values by dotted name."""
    nested: dict[str, Any] = {}
    for name, value in values.items():
        *sections, last = name.split(".")
        place = nested
        for section in sections:
            place = place.setdefault(section, {})
        place[last] = value
    path.write_text(write_yaml(nested or {"rng": {}}))
    return str(path)


def filled(values: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """`@name` stands for a path."""
    paths = {"@run": "begun_0", "@text": "text.txt", "@moved": "moved"}
    text = re.sub(r"@\w+", lambda m: str(folder / paths.get(m[0], m[0][1:])), json.dumps(values))
    filled: dict[str, Any] = json.loads(text)
    return filled


def _records(run_dir: Path) -> list[dict[str, Any]]:
    """Of metrics.jsonl, and the metric of the best validation."""
    file = run_dir / "best.json"
    best = json.loads(file.read_text())["metric"] if file.exists() else None
    return [*read_metrics(run_dir), {"split": "best", "step": 0, "metric": best}]


def _files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def walked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, tuple[Ended, list[dict[str, Any]]]]]:
    """The outcomes of `walk`."""
    folder = tmp_path_factory.mktemp("walk")
    yield run_ranks(1, walk, folder, timeout=600)[0]
    shutil.rmtree(folder)


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPECTED)
def test_a_field_that_is_changed(name: str, walked: dict[str, tuple[Ended, list[dict[str, Any]]]]) -> None:
    (ended, whole), kind = walked[name], EXPECTED[name][0]
    if kind == "fixed":
        assert ended.code == 2 and "Traceback" not in ended.output, ended.output
        assert re.search(rf"^error: {re.escape(name)}=.*\bbegan with\b", ended.output, re.MULTILINE), ended.output
        assert ended.changed == []
        return
    assert ended.code == 0, ended.output
    assert (f"{REPORTED_AS.get(name, name)}: " in ended.output) == (kind == "applies"), ended.output
    if not name.endswith(NOT_RUN):
        assert differ(ended.records, whole) == (kind == "applies"), (ended.records, whole)


def differ(records: list[dict[str, Any]], whole: list[dict[str, Any]]) -> bool:
    """Whether steps, or what was measured in the same ones, are others than without the change, beyond rounding."""
    ours, theirs = ({(r["split"], r["step"]): r for r in found} for found in (records, whole))
    if max(ours)[1] != max(theirs)[1] or max(step for _, step in ours) != max(step for _, step in theirs):
        return True
    common = ours.keys() & theirs.keys()
    assert {("train", STEPS), ("validation", STEPS)} <= common
    pairs = ((value, theirs[key].get(name)) for key in common for name, value in _measured(ours[key]))
    return any(
        value != (pytest.approx(other, rel=CLOSE, abs=CLOSE) if isinstance(other, float) else other)
        for value, other in pairs
    )


def _measured(record: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return [(name, value) for name, value in record.items() if name not in MEASURED_TIMES]
