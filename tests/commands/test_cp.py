"""`megatron-kd cp`: what is copied, that it runs from where it lies, and that nothing is overwritten."""

from __future__ import annotations

import sysconfig
from pathlib import Path

import pytest
import yaml

from megatron_kd.commands.cli import main
from megatron_kd.resolve import recipe_files
from tests.recipes.launch import ROOT


def cp(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, list[str], list[str]]:
    code = main(["cp", *argv])
    out, err = capsys.readouterr()
    return code, out.splitlines(), err.splitlines()


def test_a_recipe_comes_with_its_parts_and_runs_from_where_it_lies(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = cp(capsys, "distill_llama31_8b-1b", "mine")
    assert (code, err) == (0, [])
    assert out == ["mine/distill_llama31_8b-1b.py", "mine/llama_parts.py"]
    assert main(["validate", out[0], "--config-file", str(ROOT / "conf/smoke.yaml"), "--world-size", "2"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["scheduler"]["lr_warmup_fraction"] == 0.02


def test_nothing_is_overwritten(capsys: pytest.CaptureFixture[str], tmp_path: Path,
                                monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert cp(capsys, "distill_llama31_8b-1b")[0] == 0
    code, out, err = cp(capsys, "distill_llama31_8b-1b")
    assert (code, out) == (2, [])
    (line,) = err
    assert line.startswith("error: distill_llama31_8b-1b.py: is already there, and is never overwritten")
    assert line.endswith("; move it away, or name another DEST")
    # Another recipe shares the parts that are there, unless they were changed.
    assert cp(capsys, "distill_llama32_3b-1b", "first.py")[1] == ["first.py", "llama_parts.py"]
    (tmp_path / "llama_parts.py").write_text("# mine\n")
    code, out, err = cp(capsys, str(ROOT / "recipes/llama/quantize_distill_llama32_1b.py"), ".")
    assert (code, out) == (2, [])
    assert err[0].startswith("error: llama_parts.py: is already there")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "distill_llama31_8b-1b.py",
        "first.py",
        "llama_parts.py",
    ]
    code, _, err = cp(capsys, "distill_qwen3_8b-1p7b", "first.py/x")
    assert code == 2 and len(err) == 1


def test_a_near_name_is_suggested(capsys: pytest.CaptureFixture[str], tmp_path: Path,
                                  monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    code, _, err = cp(capsys, "distil_llama31_8b_1b")
    assert code == 2
    assert len(err) == 1 and "there is no such recipe; did you mean" in err[0] and "distill_llama31_8b-1b.py" in err[0]
    assert list(tmp_path.iterdir()) == []


def test_validate_and_plan_take_a_name(capsys: pytest.CaptureFixture[str], tmp_path: Path,
                                       monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert main(["validate", "distill_qwen3_8b-1p7b", "--config-file", str(ROOT / "conf/smoke.yaml")]) == 0
    assert main(["plan", "distill_qwen3_8b-1p7b", "--gpus", "8"]) == 0
    assert "8.2 B -> 1.7 B on 8 GPUs" in capsys.readouterr().out


def test_names_that_several_recipes_have(capsys: pytest.CaptureFixture[str], tmp_path: Path,
                                         monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    for folder in ("a", "b"):
        (tmp_path / "recipes" / folder).mkdir(parents=True)
        (tmp_path / "recipes" / folder / "same.py").write_text("def recipe(): ...\n")
    monkeypatch.chdir(tmp_path)
    code, _, err = cp(capsys, "same", "x")
    assert code == 2
    assert err == ["error: same: several recipes have this name; write one of recipes/a/same.py, recipes/b/same.py"]


def test_an_installation_has_recipes_where_setup_puts_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As pip unpacks a wheel: `share/megatron_kd` below the installation's data, and no checkout around the package."""
    (tmp_path / "share/megatron_kd/recipes").mkdir(parents=True)
    monkeypatch.setattr(sysconfig, "get_path", lambda name: {"data": str(tmp_path)}[name])
    monkeypatch.setattr(recipe_files, "__file__", str(tmp_path / "site-packages/megatron_kd/resolve/recipe_files.py"))
    monkeypatch.chdir(tmp_path)
    assert recipe_files.recipes_folder() == tmp_path / "share/megatron_kd/recipes"
