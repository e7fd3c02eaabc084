"""Names of other frameworks: each leads to a field that is there, and none hides a field or a slip in one."""

from __future__ import annotations

import re
from pathlib import Path

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


# Values as users of other frameworks give them; other fields take 1.
SAMPLES = {
    "model.hf_path": "models/a", "model.teacher.hf_path": "models/a", "model.teacher.checkpoint": "runs/a",
    "checkpoint.pretrained_checkpoint": "runs/a", "logger.run_dir": "runs/a", "dataset.data_path": "data/a",
    "dataset.text_path": "a.jsonl", "dataset.path_to_cache": "cache", "tokenizer.tokenizer_model": "models/a",
    "optimizer.optimizer": "adamw_torch", "scheduler.lr_decay_style": "constant_with_warmup",
    "mixed_precision.precision": "bfloat16", "validation.best_metric": "eval_loss", "dataset.packed_sequence": "true",
    "model.share_embeddings_and_output_weights": "true",
}  # fmt: skip


OPTIONS = sorted(name for name in every_name() if words_for_option(name) and f"--{name}" not in {f.name for f in FLAGS})


@pytest.mark.parametrize("name", OPTIONS)
def test_a_cure_that_is_followed_is_accepted(name: str, tmp_path: Path) -> None:
    (tmp_path / "kd.yaml").write_text("logit_kl_temperature: 2.0\n")
    field = every_name()[name]
    sample = str(tmp_path / "kd.yaml") if field == "model.kd_config" else SAMPLES.get(field, "1")
    found = re.fullmatch(r".*; write (.*) \[command line\]", line_of(f"--{name.replace('_', '-')}", sample))
    assert found, "names a field and a value"
    problems = merge(ConfigContainer(model=GPTDistillationProvider()), found[1].split()).problems
    assert [line for line in map(str, problems) if "models/a: there is no such folder" not in line] == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--learning-rate", "1e-4"], "--learning-rate: unknown option; write optimizer.lr=1e-4 [command line]"),
        (["--lr=1e-4"], "--lr=1e-4: unknown option; write optimizer.lr=1e-4 [command line]"),
        (["--num-layers", "4"], "--num-layers: unknown option; write model.num_layers=4 [command line]"),
        (["--save", "runs/x"], "--save: unknown option; write logger.run_dir=runs/x [command line]"),
        (["--monitor", "eval_loss"], "--monitor: unknown option; write validation.best_metric=lm_loss ["),
        (["--monitor", "perplexity"], "--monitor: unknown option; write validation.best_metric=perplexity ["),
        (["--optim", "adamw_torch"], "--optim: unknown option; write optimizer.optimizer=adam ["),
        (["--optim=sgd"], "--optim=sgd: unknown option; write optimizer.optimizer=sgd ["),
        (["--optim", "lion"], "--optim: unknown option; only adam and sgd are supported; write"),
        (["--resume_from_checkpoint", "a/b"], "--resume_from_checkpoint: unknown option; a run resumes by itself"),
        (["--resume", "a/b"], "--resume: unknown option; a run resumes by itself in its logger.run_dir"),
        (["--load", "a/b"], "--load: unknown option; a run resumes by itself in its logger.run_dir"),
        (["--no-load-rng"], "--no-load-rng: unknown option; weights are read without the states"),
        (["--ckpt-step", "5"], "--ckpt-step: unknown option; write checkpoint.resume=5 ["),
        (["--data-path", "0.5", "a", "0.5", "b"],
         "--data_path 0.5 a 0.5 b: takes one file or prefix; write dataset.data_path=[0.5,a,0.5,b] ["),
        (["--valid-data-path", "a", "b"], "--valid-data-path: unknown option; write dataset.valid_data_path=[a,b] ["),
        (["--train_file", "a.jsonl"], "--train_file: unknown option; write dataset.text_path=a.jsonl ["),
        (["--dataset_path", "a.txt"], "--dataset_path: unknown option; write dataset.text_path=a.txt ["),
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
