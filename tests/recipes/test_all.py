"""Every recipe of a real size: it runs, shrunk by conf/smoke.yaml, fits the hardware it names, and is as published."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_kd.commands import plan as command
from megatron_kd.config.container import ConfigContainer
from megatron_kd.config.derived import derived
from megatron_kd.config.gpt_distillation import GPTDistillationProvider
from megatron_kd.placement.parameters import shard_parameters
from megatron_kd.placement.registry import asked_strategy
from megatron_kd.placement.workload import workload
from megatron_kd.planning.estimate import choose
from megatron_kd.resolve.configuration import with_arguments
from megatron_kd.resolve.recipe_files import list_recipes, load_recipe
from tests.config.base import lines_of
from tests.ranks import run_ranks
from tests.recipes.launch import ROOT, checkout, run_recipe
from tests.tiny import read_metrics

SMOKE = ROOT / "conf/smoke.yaml"
PP2 = ["model.pipeline_model_parallel_size=2", "model.teacher.pipeline_model_parallel_size=2"]
TP2 = [
    *("model.tensor_model_parallel_size=2", "model.teacher.tensor_model_parallel_size=2"),
    *("model.sequence_parallel=true", "model.teacher.sequence_parallel=true"),
]
# Layouts of recipes at two ranks, as in docs/recipes.md; those with none here are data parallel, or say so.
LAYOUTS = {
    "distill_llama31_8b-1b": ["model.teacher_device_strategy=balanced"],
    "quantize_distill_llama32_1b": TP2,
    "distill_qwen25_7b-1p5b": TP2,
    "distill_qwen3_8b-1p7b": [*PP2, "model.teacher_device_strategy=colocated"],
}
# GPUs and their memory in GB, as the docstrings have it: of the recipe, and of the file in conf/.
HARDWARE = {
    "distill_llama32_3b-1b": ((1, 80), (8, 80)),
    "distill_llama31_8b-1b": ((8, 80), (8, 40)),
    "distill_llama31_70b-8b": ((64, 80), (64, 80)),
    "prune_distill_llama31_8b-4b": ((8, 80), (8, 40)),
    "quantize_distill_llama32_1b": ((1, 80), (8, 40)),
    "distill_qwen25_7b-1p5b": ((8, 80), (8, 40)),
    "distill_qwen3_8b-1p7b": ((8, 80), (8, 80)),
}
# Parameters in millions, student's and teacher's.
SIZES = {
    "distill_llama32_3b-1b": (1236, 3213),
    "distill_llama31_8b-1b": (1236, 8030),
    "distill_llama31_70b-8b": (8030, 70554),
    "prune_distill_llama31_8b-4b": (4513, 8030),
    "quantize_distill_llama32_1b": (1236, 1236),
    "distill_qwen25_7b-1p5b": (1544, 7616),
    "distill_qwen3_8b-1p7b": (1721, 8191),
}


def recipe_path(name: str) -> Path:
    return next(path for path, _ in list_recipes(ROOT / "recipes") if path.stem == name)


def conf_of(name: str) -> Path:
    return ROOT / "conf" / f"{name.removeprefix('distill_').replace('_distill_', '_')}.yaml"


def test_none_is_forgotten() -> None:
    real = {path.stem for path, _ in list_recipes(ROOT / "recipes") if path.parent.name != "tiny"}
    assert real == set(HARDWARE) == set(SIZES)
    assert {conf_of(name) for name in real} | {SMOKE} == set((ROOT / "conf").glob("*.yaml"))


@pytest.mark.slow
@pytest.mark.parametrize("name", HARDWARE)
def test_it_runs_when_shrunk(name: str, tmp_path: Path) -> None:
    words = ["--config-file", str(SMOKE), *LAYOUTS.get(name, [])]
    assert run_ranks(2, run_recipe, str(recipe_path(name)), words, checkout(tmp_path)) == [0, 0]
    (run_dir,) = (tmp_path / "runs").iterdir()
    records = read_metrics(run_dir)
    assert [(r["step"], r["split"]) for r in records] == [(1, "train"), (2, "train"), (3, "train"), (3, "validation")]
    assert all(record["logits_loss"] > 0 for record in records)
    assert (run_dir / "checkpoints/iter_0000003").is_dir()


def layouts(name: str) -> list[tuple[GPTDistillationProvider, ConfigContainer, int, float]]:
    """The recipe as it stands and with its file: model, configuration, GPUs and bytes of each."""
    found = []
    for (gpus, memory), words in zip(HARDWARE[name], ([], ["--config-file", str(conf_of(name))]), strict=True):
        cfg = with_arguments(command.without_absent_folders(load_recipe(recipe_path(name))()), words)
        assert isinstance(cfg.model, GPTDistillationProvider)
        found.append((cfg.model, cfg, gpus, memory * 1e9))
    return found


@pytest.mark.parametrize("name", HARDWARE)
def test_it_fits_the_hardware_it_names(name: str) -> None:
    for model, cfg, gpus, memory in layouts(name):
        assert not list(command.plan_problems(cfg, gpus))
        choice = choose(workload(cfg, derived(cfg, gpus), ranks_per_machine=8, device="cuda"), memory)
        strategy = asked_strategy(model) or choice.strategy
        chosen = next(estimate for estimate in choice.estimates if estimate.strategy is strategy)
        assert not chosen.cannot
        assert chosen.fits(memory), chosen.peak_bytes
    (gpus, memory), (more, smaller) = HARDWARE[name]
    named = {1: "on one", 8: "on one node of eight", 64: "on eight nodes of eight"}
    first_line = recipe_path(name).read_text().partition("\n")[0].replace("on one or more", "on one")
    assert f"{named[gpus]} {memory} GB GPU" in first_line
    size = "" if smaller == 80 else f"{smaller} GB "
    assert f"{'eight nodes of ' if more > 8 else ''}eight {size}GPUs" in conf_of(name).read_text().replace(
        "Eight", "eight"
    )


@pytest.mark.parametrize("name", HARDWARE)
def test_its_models_have_the_published_sizes(name: str) -> None:
    model = layouts(name)[0][0]
    for provider, millions in zip((model, model.teacher), SIZES[name], strict=True):
        assert provider.vocab_size is not None
        total = shard_parameters(provider, padded_vocab_size=provider.vocab_size).total
        assert round(total / 1e6) == millions


@pytest.mark.parametrize("name", HARDWARE)
def test_nothing_is_wrong_with_it_but_what_is_not_here(name: str) -> None:
    for _, cfg, gpus, _ in layouts(name):
        lines = lines_of(cfg, gpus)
        here = ("checkpoint.pretrained_checkpoint", "model.teacher.checkpoint", "dataset.data_path", "tokenizer.")
        assert lines and all(line.startswith(here) for line in lines), lines
