"""Paths, names and words of command lines survive word for word or are refused by name: the inputs of `paths.yaml`."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from megatron_kd.commands.cli import main
from megatron_kd.config.container import ConfigContainer
from megatron_kd.config.problem import value_of
from megatron_kd.resolve.configuration import Merged, check_config
from megatron_kd.resolve.recipe_files import load_recipe
from tests.config.base import RECIPE, edited
from tests.launch.test_slurm_script import directives, run_job
from tests.recipes.launch import ROOT, run, torchrun

INPUTS: list[dict[str, Any]] = yaml.safe_load((Path(__file__).parent / "paths.yaml").read_text(encoding="utf-8"))
SLOW = ("torchrun", "local")

# A recipe of which, if asked, the ranks find what the launcher does not.
SCRIPT = f"""
import os
from megatron_kd import main
from megatron_kd.errors import ConfigError
from megatron_kd.resolve.recipe_files import load_recipe

small = load_recipe({str(RECIPE)!r})

def recipe():
    if "RANK" in os.environ and os.environ.get("WRONG"):
        raise ConfigError(["model.x: is wrong on this rank; set it right"])
    return small()

if __name__ == "__main__":
    raise SystemExit(main(recipe))
"""


def inputs(*kinds: str) -> list[Any]:
    """The inputs of some kinds, as parameters of a test."""
    found = []
    for item in (item for item in INPUTS if item["via"] in kinds):
        marks = [pytest.mark.xfail(strict=True)] if item.get("fails_today") else []
        marks += [pytest.mark.slow] if item["via"] in SLOW else []
        found.append(pytest.param(item, id=f"{item['via']}: {item['name']}", marks=marks))
    return found


@pytest.fixture
def filled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Fills {tmp}, {home} and {recipe} in."""
    (tmp_path / "file").touch()
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere" / "at all")
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    names = {"{tmp}": str(tmp_path), "{home}": os.path.expanduser("~"), "{recipe}": str(RECIPE)}

    def fill(value: Any) -> Any:
        if isinstance(value, list):
            return [fill(item) for item in value]
        if isinstance(value, str):
            for name, text in names.items():
                value = value.replace(name, text)
        return value

    return fill


def resolved(item: dict[str, Any], given: Any, folder: Path) -> Merged:
    """The recipe of the tests with what the input asks for."""
    cfg: ConfigContainer = load_recipe(RECIPE)()
    field, words = item.get("field", ""), []
    if item["via"] == "words":
        words = given
    elif item["via"] == "override":
        words = [f"{field}={given}"]
    elif item["via"] == "flag":
        words = [f"{item['flag']}={given}"] if given.startswith("~") else [item["flag"], given]
    elif item["via"] == "yaml":
        section, _, name = field.rpartition(".")
        (folder / "config.yaml").write_text(yaml.safe_dump({section: {name: given}}, allow_unicode=True))
        words = ["--config-file", str(folder / "config.yaml")]
    else:
        edited(cfg, {field: Path(given) if item.get("as_path") else given})
    return check_config(cfg, words, 1)


@pytest.mark.parametrize("item", inputs("override", "flag", "yaml", "python", "words"))
def test_values(item: dict[str, Any], filled: Any, tmp_path: Path) -> None:
    given, expect = filled(item["given"]), item["expect"]
    found = resolved(item, given, tmp_path)
    lines = list(map(str, found.problems))
    if expect == "cure_works":
        (line,) = lines
        (word,) = shlex.split(re.sub(r".*\bwrite | \[command line\]$", "", line))
        found, lines = resolved({"via": "words"}, [word], tmp_path), []
    if isinstance(expect, dict) and "refused" in expect:
        texts = filled(expect["refused"])
        assert any(all(text in line for text in texts) for line in lines), lines
    else:
        assert not lines and not found.problems
        value = filled(expect["value"]) if isinstance(expect, dict) else given
        assert value_of(found.config, item["field"]) == value


@pytest.mark.parametrize("item", inputs("command"))
def test_commands(item: dict[str, Any], filled: Any, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code = main(filled(item["given"]))
    except SystemExit as stopped:  # argparse's own
        code = int(str(stopped.code or 0))
    said, expect = capsys.readouterr(), item["expect"]
    assert code == expect["code"], said
    assert all(text in said.out for text in filled(expect.get("out", []))), said.out
    texts = filled(expect.get("err", []))
    assert not texts or any(all(text in line for text in texts) for line in said.err.splitlines()), said.err


def read_by_sbatch(text: str) -> str:
    """A value of an #SBATCH line with its quotes taken off, and %j replaced by 41234, as SLURM 22.05 does both."""
    (plain,) = shlex.split(text, comments=True)
    return re.sub(r"%(.)", lambda found: {"%": "%", "j": "41234"}.get(found[1], "?"), plain)


@pytest.mark.parametrize("item", inputs("slurm"))
def test_jobs(
    item: dict[str, Any], tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = item["given"]
    monkeypatch.chdir(ROOT if "recipe" in item else tmp_path)
    recipe = item.get("recipe", str(RECIPE))
    mock = [*("model.teacher.checkpoint=null", "model.teacher.init=random", "dataset.train_data_path=null"),
            *("dataset.valid_data_path=null", "dataset.mock=true", "model.vocab_size=64", "train.global_batch_size=8"),
            *("model.teacher.vocab_size=64", "tokenizer.tokenizer_model=null")]  # fmt: skip
    words = ["launch", "--slurm", recipe, "--dry-run", "--nproc=1", "--job-name=a b", "--output_dir", given, *mock]
    assert main(words) == 0
    text = capfd.readouterr().out
    (output,) = (d.removeprefix("--output=") for d in directives(text) if d.startswith("--output="))
    assert read_by_sbatch(output) == f"{given}/slurm/41234.out"
    assert "--job-name='a b'" in directives(text)
    done = run_job(text, r'printf "%s\0" "$@"', tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    started = done.stdout.split("\0")[:-1]
    at = started.index("megatron_kd.launch.agent")
    script = next(n for n, word in enumerate(started[at:], at) if word.endswith(".py"))
    assert started[at + 1] == given and Path(started[script]).is_file()
    found = check_config(load_recipe(started[script])(), started[script + 1 :], 1)
    assert not found.problems, [str(problem) for problem in found.problems]
    assert found.config.logger.run_dir == given


def last_words(done: subprocess.CompletedProcess[str], words: str, below: int) -> None:
    """The words are there once, and at most `below` lines come after them."""
    assert done.stderr.count(words) == 1 and words not in done.stdout, done.stderr
    lines = done.stderr.rstrip().splitlines()
    place = next(n for n, line in enumerate(lines) if words in line)
    assert len(lines) - place - 1 <= below, done.stderr


@pytest.mark.parametrize("item", inputs("torchrun"))
def test_torchrun(item: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "recipe.py").write_text(SCRIPT)
    done = torchrun(item["ranks"], "recipe.py", *item["given"], cwd=tmp_path)
    last_words(done, item["words"], below=1)  # the rule that ends torchrun's report


@pytest.mark.parametrize("item", inputs("local"))
def test_launch(item: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "recipe.py").write_text(SCRIPT)
    words: Sequence[str] = ["launch", "--local", "recipe.py", "--nproc=2", f"logger.run_dir={tmp_path}/run"]
    done = run(["-m", "megatron_kd.commands.cli", *words], tmp_path, WRONG="yes")
    assert done.returncode == 2
    last_words(done, item["words"], below=0)
