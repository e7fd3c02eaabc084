"""Names of other frameworks: each leads to a field that is there, and none hides a field or a slip in one."""

from __future__ import annotations

import re

import pytest

from megatron_kd.config.container import ConfigContainer
from megatron_kd.config.gpt_distillation import GPTDistillationProvider
from megatron_kd.config.other_names import every_name, words_for_option
from megatron_kd.config.schema import schema_of
from megatron_kd.config.values import dotted
from megatron_kd.resolve.configuration import merge
from megatron_kd.resolve.flags import FLAGS

SCHEMA = schema_of(ConfigContainer(model=GPTDistillationProvider()))
KEYS = {dotted(path) for path in (*SCHEMA.leaves, *SCHEMA.sections)}
FIELD = re.compile(rf"\b(?:{'|'.join(path[0] for path in SCHEMA.sections if len(path) == 1)})(?:\.[a-z_0-9]+)+")


def line_of(*words: str) -> str:
    (problem,) = merge(ConfigContainer(model=GPTDistillationProvider()), words).problems
    return str(problem)


def test_there_are_many_names_and_none_is_a_field() -> None:
    assert len(every_name()) >= 80
    assert not set(every_name()) & {path[-1] for path in SCHEMA.leaves}
    assert all(re.fullmatch("[a-z0-9_]+", name) for name in every_name())


@pytest.mark.parametrize("name", sorted(every_name()))
def test_every_name_leads_to_fields_that_are_there(name: str) -> None:
    said = every_name()[name]
    if " " not in said or "=" in said.partition(" ")[0]:
        assert all(word.partition("=")[0] in KEYS for word in said.split())
    assert all(field in KEYS for field in FIELD.findall(said.replace("metrics.jsonl", "")))
    line = line_of(f"train.{name}=1")
    assert line.startswith(f"train.{name}: unknown key; ") and said in line
    if f"--{name}" not in {flag.name for flag in FLAGS}:
        option = f"--{name.replace('_', '-')}"
        line = line_of(option)
        assert line.startswith(f"{option}: unknown option; ") and said in line


def test_words_that_a_message_gives_are_accepted() -> None:
    for said in every_name().values():
        if "=" in said.partition(" ")[0]:
            assert not merge(ConfigContainer(model=GPTDistillationProvider()), said.split()).problems, said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--learning-rate", "1e-4"], "--learning-rate: unknown option; write optimizer.lr=1e-4 [command line]"),
        (["--lr=1e-4"], "--lr=1e-4: unknown option; write optimizer.lr=1e-4 [command line]"),
        (["--num-layers", "4"], "--num-layers: unknown option; write model.num_layers=4 [command line]"),
        (["--save", "runs/x"], "--save: unknown option; write logger.run_dir=runs/x [command line]"),
        (["--seed"], "--seed: unknown option; write rng.seed=... [command line]"),
        (["--bf16", "x.y=1"], "--bf16: unknown option; write mixed_precision.precision=bf16 [command line]"),
        (["model.teacher.rope_theta=1"], "model.teacher.rope_theta: unknown key; did you mean model.teacher.rotary"),
        (["model.teacher.dtype=bf16"], "model.teacher.dtype: unknown key; did you mean model.teacher_dtype?"),
        (["trainer={max_steps: 3}"], "trainer.max_steps: unknown key; did you mean train.train_iters? [command line]"),
        (["kd_config={temperature: 3}"], "kd_config.temperature: unknown key; did you mean model.kd_config.logit_kl_t"),
    ],
)  # fmt: skip
def test_what_is_said(words: list[str], said: str) -> None:
    problems = merge(ConfigContainer(model=GPTDistillationProvider()), words).problems
    assert str(problems[0]).startswith(said) or str(problems[-1]).startswith(said), [str(p) for p in problems]


def test_a_name_of_what_this_configuration_lacks_is_not_suggested() -> None:
    (problem,) = merge(ConfigContainer(), ["train.temperature=2"]).problems
    assert "kd_config" not in str(problem)


def test_options_named_like_other_fields_mean_their_own() -> None:
    assert words_for_option("--save") == "logger.run_dir"
