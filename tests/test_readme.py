"""Runs all that the documents show: every fenced `bash` command and every fenced `python` example.

Runs are shrunk by overrides that are appended; those that want more ranks than two, or weights, are validated.
In a document, a `yaml` block whose first line is `# some/file.yaml` is that file for the document's commands, and a
`bash` line that ends in `# exit code N` must end so. A command that no rule here knows is an error: add a rule.
"""

from __future__ import annotations

import importlib.util
import re
import shlex
import sysconfig
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from megatron_kd.commands import cli
from megatron_kd.commands.arguments import config_words
from megatron_kd.config.gpt_distillation import GPTDistillationProvider
from megatron_kd.resolve.overrides import parse_arguments
from megatron_kd.resolve.recipe_files import load_recipe
from tests.huggingface.families import FAMILIES, save
from tests.ranks import run_ranks
from tests.recipes.launch import ROOT, SMALL_LLAMA, checkout, run, run_recipe

DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]

# Nothing of ours runs: shell, other people's programs, and what would change this machine.
NOT_OURS = {"cd", "git", "hf", "ls", "pip", "pre-commit", "python3", "rm", "sbatch", "source", "tensorboard"}

_FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_NO_DATA = "text_path: null, data_path: null, train_data_path: null, valid_data_path: null"
_MADE_UP_DATA = [f"dataset={{{_NO_DATA}, mock: true}}", "tokenizer.tokenizer_model=null"]
_TINY = [
    *_MADE_UP_DATA,
    "model.init=random",
    "checkpoint.pretrained_checkpoint=null",
    "model.vocab_size=250",
    "train.train_iters=2",
    "train.num_epochs=null",
    "validation.eval_iters=1",
]
_RANDOM_TEACHER = ["model.teacher.vocab_size=250", "model.teacher.checkpoint=null", "model.teacher.init=random"]
# Arguments that make a tool of ours short; one that is not here is asked for its --help.
_SHORT_TOOLS = {
    "tools/bench/loss_memory_speed.py": [
        *("--tokens", "32", "--vocab", "256", "--student-hidden", "16", "--teacher-hidden", "32", "--repeats", "1"),
        *("--dtypes", "float32"),
    ],
    "tools/bench/step_breakdown.py": ["--steps", "6", *_TINY[2:], "train.train_iters=6"],
    "tools/bench/teacher_placement.py": [
        *("--teacher", "2x128", "--student", "2x64", "--vocab", "256", "--wide-vocab", "384", "--seq", "16"),
        *("--sides", "colocated", "gpu0", "--rounds", "1"),
    ],
    "tools/bench/whole_step.py": [
        *("--teacher", "2x64", "--student", "1x64", "--vocab", "256", "--batch", "2", "--seq", "16", "--rounds", "1"),
        *("--sides", "distillation", "peer"),
    ],
    "tools/make_corpus.py": ["--source", str(Path(sysconfig.get_paths()["stdlib"]) / "json"), "--vocab-size", "300"],
}
_OF_A_FOLDER = ("hf_path", "num_", "hidden_size", "ffn_hidden_size", "kv_channels", "vocab_size", "init")


@dataclass(frozen=True)
class Command:
    """One line of a `bash` block: its words, and the exit code it is documented to have."""

    document: Path
    words: tuple[str, ...]
    exit_code: int

    def __str__(self) -> str:
        return f"{self.document.name}: {' '.join(self.words)}"


def commands_in(document: Path) -> list[Command]:
    """The commands of every `bash` block, comments and environment settings left out, without repetitions."""
    found = []
    for kind, text in _FENCE.findall(document.read_text(encoding="utf-8")):
        if kind == "bash":
            for line in text.replace("\\\n", " ").splitlines():
                code = re.search(r"# exit code (\d+)$", line)
                words = [word for word in shlex.split(line, comments=True) if not re.match(r"[A-Z_]+=", word)]
                if words:
                    found.append(Command(document, tuple(words), int(code.group(1)) if code else 0))
    return list(dict.fromkeys(found))


def python_examples_in(document: Path) -> list[str]:
    """The `python` blocks."""
    return [text for kind, text in _FENCE.findall(document.read_text(encoding="utf-8")) if kind == "python"]


def _is_slow(command: Command) -> bool:
    """Whether a command starts ranks of its own or a benchmark, which take seconds."""
    ours = any(word.startswith("tools/bench/") for word in command.words)
    return command.words[0] == "torchrun" or (command.words[0] == "python" and ours)


COMMANDS = [
    pytest.param(command, marks=[pytest.mark.slow] if _is_slow(command) else [])
    for document in DOCUMENTS
    if document.name != "tutorial.md"  # a story: tests/test_tutorial.py
    for command in commands_in(document)
]
EXAMPLES = [(document.name, text) for document in DOCUMENTS for text in python_examples_in(document)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkout without weights, data and runs."""
    for name in ("conf", "tools"):
        (tmp_path / name).mkdir()
        for path in (ROOT / name).iterdir():
            (tmp_path / name / path.name).symlink_to(path)
    return checkout(tmp_path)


@pytest.mark.parametrize("command", COMMANDS, ids=str)
def test_the_documented_command(command: Command, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_files_of(command.document, folder)
    monkeypatch.chdir(folder)
    program, *rest = command.words
    if program in NOT_OURS:
        return
    assert program in _RULES, f"{command}: no rule says how to try this program; add one"
    _RULES[program](rest, command.exit_code)


@pytest.mark.parametrize(("name", "text"), EXAMPLES)
def test_the_python_example(name: str, text: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    exec(compile(text, name, "exec"), {})


@pytest.mark.parametrize("document", [*DOCUMENTS, ROOT / "CHANGELOG.md"], ids=lambda path: path.name)
def test_links_to_files_and_headings_lead_somewhere(document: Path) -> None:
    for target, heading in re.findall(r"\]\(([^)#:\s]*)(?:#([^)]*))?\)", document.read_text(encoding="utf-8")):
        linked = document.parent / target if target else document
        assert linked.exists(), f"{document.name}: there is no {target}"
        assert not heading or heading in anchors_of(linked), f"{document.name}: {linked.name} has no #{heading}"


def anchors_of(document: Path) -> set[str]:
    """The anchors that GitHub gives the headings."""
    headings = re.findall(r"^#+ (.*)$", document.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\s-]", "", heading.lower()).replace(" ", "-") for heading in headings}


def write_files_of(document: Path, folder: Path) -> None:
    """Write the document's `yaml` blocks that name a file, below `folder`."""
    for kind, text in _FENCE.findall(document.read_text(encoding="utf-8")):
        name = re.match(r"# (\S+\.ya?ml)\n", text)
        if kind == "yaml" and name and not (folder / name.group(1)).exists():
            (folder / name.group(1)).parent.mkdir(parents=True, exist_ok=True)
            (folder / name.group(1)).write_text(text, encoding="utf-8")


def _make(words: list[str], exit_code: int) -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    for word in words:
        assert word in targets or re.match(r"(SEEDS|SMOKE|PYTHON)=", word), f"make has no {word}"


def _megatron_kd(words: list[str], exit_code: int) -> None:
    if words[0] == "validate":
        _validate(words[1:], exit_code)
    elif words[0] == "launch":
        _launch(words, exit_code)
    elif words[0] in ("plan", "ls", "cp"):  # reads neither weights nor data
        assert cli.main(words) == exit_code
    else:  # they read files that the reader has and we do not
        _, args = cli.parse(words)
        assert not parse_arguments(getattr(args, "overrides", [])).problems


def _launch(words: list[str], exit_code: int) -> None:
    recipe = next(word for word in words if word.endswith(".py"))
    if "--slurm" in words:
        made_up = SMALL_LLAMA if "llama" in recipe else _shrinking(recipe, words)
        assert cli.main([*words, *({"--dry-run"} - set(words)), *made_up]) == exit_code
    else:  # tests/launch/test_local.py starts one
        _, args = cli.parse(words)
        _validate([recipe, *config_words(args), f"--world-size={args.nproc or 1}"], exit_code)


def _torchrun(words: list[str], exit_code: int) -> None:
    if "megatron_kd.evaluation" in words:
        _megatron_kd(["evaluate", *words[words.index("megatron_kd.evaluation") + 1 :]], exit_code)
        return
    place = next(index for index, word in enumerate(words) if word.endswith(".py"))
    options = dict(word.removeprefix("--").split("=") for word in words[:place] if "=" in word)
    ranks = int(options.get("nproc_per_node", 1)) * int(options.get("nnodes", 1))
    script, arguments = words[place], words[place + 1 :]
    if ranks > 2 or _is_of_real_size(script):
        _validate([script, *arguments, f"--world-size={ranks}"], exit_code)
    else:
        shrunk = [*arguments, *_shrinking(script, arguments)]
        if script.startswith("recipes/"):  # on ranks that are there: tests/recipes start torchrun
            assert run_ranks(ranks, run_recipe, script, shrunk, Path.cwd()) == [exit_code] * ranks
        else:
            launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
            _finish([*launcher, script, *shrunk], exit_code)


def _python(words: list[str], exit_code: int) -> None:
    script = words[0]
    if script.startswith("recipes/"):
        _torchrun(words, exit_code)
    elif script in _SHORT_TOOLS:
        _finish([*words, *_shrinking(script, words)], exit_code)
    elif script == "-m":
        assert importlib.util.find_spec(words[1]), f"there is no module {words[1]}"
    else:
        _finish([script, "--help"], exit_code)


_RULES: dict[str, Callable[[list[str], int], None]] = {
    "make": _make,
    "megatron-kd": _megatron_kd,
    "torchrun": _torchrun,
    "python": _python,
}


def _validate(words: list[str], exit_code: int) -> None:
    """Check a recipe and its overrides; replace missing weights and data by mock ones."""
    made_up = SMALL_LLAMA if _is_of_real_size(words[0]) else _shrinking(words[0], words)
    named = _make_huggingface_folders(words)
    if named:  # a folder's sizes are not a reader's to change
        made_up = [word for word in made_up if not word.startswith(named) or ".seq_length=" in word]
    assert cli.main(["validate", *words, *made_up]) == exit_code


def _is_of_real_size(recipe: str) -> bool:
    return "llama" in recipe or "qwen" in recipe


def _make_huggingface_folders(words: list[str]) -> tuple[str, ...]:
    """Make a small model wherever `words` name a Hugging Face folder; the beginnings of the fields it fills."""
    given = dict(zip(words, [*words[1:], ""], strict=True))
    folders = {word.partition(".hf_path=")[0]: word.partition("=")[2] for word in words if ".hf_path=" in word}
    if (teacher := given.get("--teacher_path", "")).startswith("models/"):
        folders["model.teacher"] = teacher
    for folder in set(folders.values()):
        save(next(iter(FAMILIES)), Path(folder))
    return tuple(f"{model}.{field}" for model in folders for field in _OF_A_FOLDER)


def _shrinking(script: str, words: Sequence[str]) -> list[str]:
    """Overrides that make a script short and let it do without weights and data, where `words` do not say."""
    if script in _SHORT_TOOLS:
        is_model = script == "tools/bench/step_breakdown.py"
        return [*_SHORT_TOOLS[script], *(_MADE_UP_DATA if is_model else []), *(_RANDOM_TEACHER if is_model else [])]
    distils = isinstance(load_recipe(script)().model, GPTDistillationProvider)
    asked_for = any(word.startswith("model.init=") for word in words)
    tiny = [word for word in _TINY if not (asked_for and word.startswith("model.init="))]
    return [*tiny, *(_RANDOM_TEACHER if distils else [])]


def _finish(words: list[str], exit_code: int) -> None:
    result = run(words, Path.cwd())
    assert result.returncode == exit_code, result.stdout[-2000:] + result.stderr[-4000:]
