"""`validate` accepts exactly what a run accepts: every configuration of a table written by hand is given to both.

The run is a real one: a tiny distillation that trains and evaluates one step, on as many ranks as its case says. Each
blend and split that is refused is also given to the functions that read the data, without the checks before them.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from megatron_kd.commands.cli import main as megatron_kd
from megatron_kd.config.sections import DatasetConfig
from megatron_kd.data.preprocessing.tokenise_files import preprocess
from megatron_kd.data.tokens.byte_bpe import train_byte_bpe
from megatron_kd.data.tokens.tokenizer import load_huggingface
from megatron_kd.entry import main as start
from megatron_kd.errors import InputError
from tests.data.chats import PLAIN, chats, write_chats
from tests.data.tokens import write_tokens
from tests.ranks import run_ranks
from tests.tiny import VOCAB, tiny_config

RECIPE = """\
from pathlib import Path
from tests.tiny import tiny_config

def recipe():
    return tiny_config(Path("run"), iters=1)
"""


@dataclass(frozen=True)
class Case:
    """Words of a command line, the number of ranks, and whether both accept them."""

    words: tuple[str, ...]
    ranks: int
    accepted: bool


def good(*words: str, ranks: int = 1) -> Case:
    return Case(words, ranks, accepted=True)


def bad(*words: str, ranks: int = 1) -> Case:
    return Case(words, ranks, accepted=False)


def both(*settings: str) -> tuple[str, ...]:
    """The same settings of student and teacher."""
    return tuple(f"{model}.{setting}" for model in ("model", "model.teacher") for setting in settings)


def data(blend: str, *more: str) -> tuple[str, ...]:
    """All data is `blend`: `a` and `b` are text, 40 and 60 documents; `c` and `d` are 40 and 4 conversations."""
    return ("dataset.mock=false", f"dataset.data_path={blend}", *more)


def split(text: str, *more: str) -> tuple[str, ...]:
    return data("[a]", f"dataset.split='{text}'", *more)


NO_VALIDATION = "validation.eval_iters=0"
CHAT = "dataset.chat=true"

BLENDS = {
    "one file": good(*data("[a]")),
    "two files": good(*data("[a,b]")),
    "a file twice": good(*data("[a,a]")),
    "weights": good(*data("[0.7,a,0.3,b]")),
    "weights that are text": good(*data("['0.5',a,'2e0',b]")),
    "weights far apart": good(*data("[1e-9,a,5,b]")),
    "one weight": good(*data("[3,a]")),
    "the same file under two weights": good(*data("[3,a,1,a,2,b]")),
    "a prefix that is a number": good(*data("[0.5,./7,0.5,a]")),
    "conversations": good(*data("[c]", CHAT)),
    "weighted conversations": good(*data("[0.5,c,0.5,c]", CHAT)),
    "a list for each split": good(
        "dataset.mock=false", "dataset.train_data_path=[1,a,2,b]", "dataset.valid_data_path=[b]"
    ),
    "training data alone": good("dataset.mock=false", "dataset.train_data_path=[a]", NO_VALIDATION),
    "nothing": bad(*data("[]")),
    "a weight alone": bad(*data("[0.5]")),
    "a weight after its prefix": bad(*data("[a,0.5]")),
    "a weight too few": bad(*data("[0.5,a,b]")),
    "two weights": bad(*data("[0.5,0.5,a,b]")),
    "a number for a prefix": bad(*data("[0.5,'0']")),
    "weight 0": bad(*data("[0,a]")),
    "a second weight of 0": bad(*data("[0.5,a,0.0,b]")),
    "a negative weight": bad(*data("[-1,a]")),
    "an infinite weight": bad(*data("[inf,a]")),
    "a weight that is NaN": bad(*data("[1,a,nan,b]")),
    "an infinite sum of weights": bad(*data("[1e308,a,1e308,b]")),
    "weight 0 in a split's own list": bad(
        "dataset.mock=false", "dataset.train_data_path=[0,a,1,b]", "dataset.valid_data_path=[b]"
    ),
    "a file for a prefix": bad(*data("[a.bin]")),
    "no such file": bad(*data("[a,nowhere]")),
    "a cut index": bad(*data("[cut]")),
    "text as conversations": bad(*data("[a]", CHAT)),
    "conversations as text": bad(*data("[c]")),
    "a loss mask of another file": bad(*data("[odd]", CHAT)),
    "no validation data": bad("dataset.mock=false", "dataset.train_data_path=[a]"),
    "two origins": bad(*data("[a]", "dataset.train_data_path=[a]")),
    "less than one sample": bad(*data("[short]")),
    "less than one sample in one of two": bad(*data("[0.9,a,0.1,short]")),
}

SPLITS = {
    "the default": good(*split("949,50,1")),
    "two shares": good(*split("90,10")),
    "one share": good(*split("100", NO_VALIDATION)),
    "fractions": good(*split("0.7,.25,5.e-2")),
    "an exponent": good(*split("1e2,5,1")),
    "spaces": good(*split(" 9 , 1 ")),
    "no test data": good(*split("9,1,0")),
    "no validation data, and none needed": good(*split("1,0,0", NO_VALIDATION)),
    "large shares": good(*split("1e300,1e300")),
    "no share": bad(*split("")),
    "all 0": bad(*split("0,0,0")),
    "four shares": bad(*split("1,2,3,4")),
    "a negative share": bad(*split("-1,2")),
    "words": bad(*split("a,b,c")),
    "a missing share": bad(*split("9,,1")),
    "a comma too many": bad(*split("9,1,")),
    "colons": bad(*split("9:1")),
    "percent": bad(*split("90%,10%")),
    "an infinite share": bad(*split("inf,1,1")),
    "a share that is NaN": bad(*split("nan,1")),
    "a share beyond floating point": bad(*split("1e309,1")),
    "an infinite sum": bad(*split("1e308,1e308,1e308")),
    "no training data": bad(*split("0,1,0")),
    "validation data needed and none": bad(*split("9,0,1")),
    "one share and validation": bad(*split("100")),
    "a share of less than a document": bad(*split("1,1e-9")),
    "a share of less than a conversation": bad(*data("[c]", CHAT, "dataset.split='1,1e-9'")),
    "a share of less than a conversation of one file": bad(*data("[1,c,1,d]", CHAT, "dataset.split='9,1'")),
}

SIZES = {
    "one layer": good("model.num_layers=1"),
    "an odd width of the feed-forward layer": good("model.ffn_hidden_size=33"),
    "all heads in one group": good("model.num_query_groups=1"),
    "a head of its own width": good("model.kv_channels=6"),
    "both models of shorter sequences": good(*both("seq_length=8")),
    "another batch": good("train.global_batch_size=12", "train.micro_batch_size=3"),
    "heads that do not divide the hidden size": bad("model.hidden_size=33"),
    "groups that do not divide the heads": bad("model.num_query_groups=3"),
    "no layers": bad("model.num_layers=0"),
    "an odd number of rotary channels": bad("model.kv_channels=5"),
    "two lengths of sequences": bad("model.seq_length=8"),
    "fewer ids than the tokenizer": bad("model.vocab_size=200"),
    "micro-batches that do not fill the batch": bad("train.micro_batch_size=3"),
}

TP2, PP2 = both("tensor_model_parallel_size=2"), both("pipeline_model_parallel_size=2")
DP2 = ("train.micro_batch_size=4",)
LAYOUTS = {
    "tensor parallel": good(*TP2, ranks=2),
    "sequence parallel": good(*TP2, *both("sequence_parallel=true"), ranks=2),
    "pipeline parallel": good(*PP2, ranks=2),
    "data parallel": good(*DP2, ranks=2),
    "a batch for each rank": good("train.global_batch_size=null", ranks=2),
    "recompute": good(
        "model.recompute_granularity=full", "model.recompute_method=uniform", "model.recompute_num_layers=1"
    ),
    "a balanced teacher": good("model.teacher_device_strategy=balanced", *DP2, ranks=2),
    "a teacher on one rank": good("model.teacher_device_strategy=gpu0", *DP2, ranks=2),
    "a teacher on the CPU": good("model.teacher_device_strategy=cpu", *DP2, ranks=2),
    "more shards than ranks": bad(*TP2),
    "more stages than ranks": bad(*PP2),
    "more shards than groups": bad(*TP2, "model.num_query_groups=1", ranks=2),
    "sequence parallel on one shard": bad("model.sequence_parallel=true", *DP2, ranks=2),
    "a stage without layers": bad(*PP2, "model.num_layers=1", ranks=2),
    "an interleaved pipeline of one stage": bad("model.virtual_pipeline_model_parallel_size=2"),
    "context parallel": bad("model.context_parallel_size=2", ranks=2),
    "two layouts of a colocated teacher": bad(
        "model.teacher_device_strategy=colocated", "model.teacher.tensor_model_parallel_size=2", *DP2, ranks=2
    ),
    "a batch that the ranks do not share": bad("train.micro_batch_size=8", ranks=2),
    "a teacher on a rank that is not there": bad(
        "model.teacher_device_strategy=gpu0", "model.teacher_rank=2", *DP2, ranks=2
    ),
}


def read(*words: str) -> tuple[str, ...]:
    """A run on a text, of models that take the vocabulary of `tokenizer`."""
    whole = ("dataset.mock=false", "dataset.split='1,0,0'", NO_VALIDATION)
    return (*whole, *both("vocab_size=null"), "tokenizer.tokenizer_type=huggingface", *words)


TOKENS = ("dataset.data_path=[a]",)
TEXT = ("dataset.text_path=text.jsonl",)
TOKENIZER = "tokenizer.tokenizer_model=tokenizer"
FILES = {
    "a tokenizer": good(*read(*TOKENS, TOKENIZER)),
    "a text": good(*read(*TEXT, TOKENIZER)),
    "the same tokenizer for the teacher": good(
        *read(*TOKENS, TOKENIZER, "tokenizer.teacher_tokenizer_model=tokenizer/tokenizer.json")
    ),
    "chats": good(
        *read("dataset.text_path=chats.jsonl", CHAT, TOKENIZER, "model.seq_length=256", "model.teacher.seq_length=256")
    ),
    "a tokenizer without an end": bad(*read(*TOKENS, "tokenizer.tokenizer_model=endless")),
    "a damaged tokenizer": bad(*read(*TOKENS, "tokenizer.tokenizer_model=damaged")),
    "a tokenizer with more ids than the student": bad(*read(*TOKENS, TOKENIZER, "model.vocab_size=100")),
    "a teacher's tokenizer with other tokens": bad(
        *read(*TOKENS, TOKENIZER, "tokenizer.teacher_tokenizer_model=other")
    ),
    "more of the top than there are ids": bad(*read(*TOKENS, TOKENIZER, "model.kd_config.logit_kl_topk=900")),
    "data of another tokenizer": bad(*read("dataset.data_path=[foreign]", TOKENIZER)),
    "data with a changed byte": bad(*read("dataset.data_path=[flipped]", TOKENIZER)),
    "conversations of which nothing is learnt": bad(*read("dataset.data_path=[mute]", CHAT, TOKENIZER)),
    "a text of which a line is not JSON": bad(*read("dataset.text_path=cut.jsonl", TOKENIZER)),
    "a text without text": bad(*read("dataset.text_path=chats.jsonl", TOKENIZER)),
    "text for chats": bad(*read(*TEXT, CHAT, TOKENIZER)),
    "chats without a template": bad(*read("dataset.text_path=chats.jsonl", CHAT, "tokenizer.tokenizer_model=other")),
}

TABLES = {"files": FILES, "blend": BLENDS, "split": SPLITS, "size": SIZES, "layout": LAYOUTS}
CASES = {f"{kind}: {name}": case for kind, cases in TABLES.items() for name, case in cases.items()}

RUN_DIRS = {name: f"runs/{number}" for number, name in enumerate(CASES)}

# The functions that read the data cannot know that it has two origins, or that it is conversations.
READ_REGARDLESS = {"blend: two origins", "blend: conversations as text"}
REFUSED_DATA = [
    name
    for name, case in CASES.items()
    if name.startswith(("blend", "split")) and not case.accepted and name not in READ_REGARDLESS
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe and its data."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "recipe.py").write_text(RECIPE)
    for name, documents in {"a": 40, "b": 60, "7": 40, "c": 40, "d": 4, "odd": 40, "cut": 40, "short": 1}.items():
        write_tokens(folder / name, [range(first, first + 20) for first in range(documents)])
    index = (folder / "cut.idx").read_bytes()
    (folder / "cut.idx").write_bytes(index[:-8])
    write_read_files(folder)
    for name, tokens in {"c": 40 * 20, "d": 4 * 20, "odd": 39 * 20}.items():
        (folder / f"{name}.loss_mask.bin").write_bytes(b"\1" * tokens)
    return folder


def write_read_files(folder: Path) -> None:
    """Tokenizers, texts, and data with content that a run refuses."""
    for name in ("tokenizer", "other"):
        train_byte_bpe([f"{name} {number}" for number in range(300)], 270, folder / name)
    (folder / "tokenizer/chat_template.jinja").write_text(PLAIN)
    for name, file, content in (("endless", "tokenizer_config.json", "{}"), ("damaged", "tokenizer.json", "{")):
        shutil.copytree(folder / "tokenizer", folder / name)
        (folder / name / file).write_text(content)
    (folder / "text.jsonl").write_text(json.dumps({"text": "tokenizer " * 9}) + "\n" + '{"text": "more"}\n' * 40)
    (folder / "cut.jsonl").write_text('{"text": "some"}\n{"text": \n')
    write_chats(folder / "chats.jsonl", chats(20))
    write_tokens(folder / "foreign", [range(260, 280) for _ in range(40)])
    write_tokens(folder / "mute", [range(20) for _ in range(40)])
    (folder / "mute.loss_mask.bin").write_bytes(bytes(40 * 20))
    tokenizer = load_huggingface(folder / "tokenizer")
    preprocess([folder / "text.jsonl"], folder / "flipped", tokenizer, workers=1)
    content = bytearray((folder / "flipped.bin").read_bytes())
    content[8] ^= 1
    (folder / "flipped.bin").write_bytes(content)


def exit_codes(folder: Path, lines: Sequence[tuple[str, ...]], ranks: int) -> list[int]:
    """On a rank: what each run ends with, of `ranks` ranks. Those that are refused need no ranks to be there."""
    from megatron_kd.resolve.recipe_files import load_recipe

    os.chdir(folder)
    os.environ["WORLD_SIZE"] = str(ranks)
    recipe = load_recipe("recipe.py")
    return [start(recipe, words) for words in lines]


def codes_of(folder: Path, cases: dict[str, Case], started: int) -> dict[str, int]:
    """The exit code of each run, by name. All are of one number of ranks, of which `started` are there."""
    (ranks,) = {case.ranks for case in cases.values()}
    lines = [(*case.words, f"logger.run_dir={RUN_DIRS[name]}") for name, case in cases.items()]
    by_rank = run_ranks(started, exit_codes, folder, lines, ranks, timeout=300)
    assert all(codes == by_rank[0] for codes in by_rank)
    return dict(zip(cases, by_rank[0], strict=True))


@pytest.mark.parametrize("name", CASES)
def test_validate(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(folder)
    code = megatron_kd(["validate", "recipe.py", f"--world-size={CASES[name].ranks}", *CASES[name].words])
    assert code == (0 if CASES[name].accepted else 2), capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_run_that_is_accepted_trains(ranks: int, folder: Path) -> None:
    cases = {name: case for name, case in CASES.items() if case.accepted and case.ranks == ranks}
    assert codes_of(folder, cases, started=ranks) == dict.fromkeys(cases, 0)


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_run_that_is_refused_ends_before_any_rank_waits(ranks: int, folder: Path) -> None:
    cases = {name: case for name, case in CASES.items() if not case.accepted and case.ranks == ranks}
    assert codes_of(folder, cases, started=1) == dict.fromkeys(cases, 2)
    assert not any((folder / RUN_DIRS[name] / "metrics.jsonl").exists() for name in cases)


def refusals(folder: Path, lines: Sequence[tuple[str, ...]]) -> list[list[str]]:
    """On a rank: the error lines of each run."""
    from megatron_kd.resolve.recipe_files import load_recipe

    os.chdir(folder)
    os.environ["WORLD_SIZE"] = "1"
    recipe, found = load_recipe("recipe.py"), []
    for number, words in enumerate(lines):
        with contextlib.redirect_stderr(io.StringIO()) as err:
            start(recipe, [*words, f"logger.run_dir=refused/{number}"])
        found.append(sorted(line for line in err.getvalue().splitlines() if line.startswith("error: ")))
    return found


def test_validate_and_a_run_refuse_in_the_same_words(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    refused = {name: case.words for name, case in CASES.items() if not case.accepted and case.ranks == 1}
    (by_run,) = run_ranks(1, refusals, folder, list(refused.values()), timeout=300)
    for (name, words), expected in zip(refused.items(), by_run, strict=True):
        assert megatron_kd(["validate", "recipe.py", "--world-size=1", *words, "logger.run_dir=refused/x"]) == 2
        assert sorted(capsys.readouterr().err.splitlines()) == expected, name


@pytest.mark.parametrize("name", REFUSED_DATA)
def test_what_reads_the_data_refuses_it_without_the_checks(
    name: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from megatron_kd.data.samples.datasets import build_datasets
    from megatron_kd.data.tokens.tokenizer import NullTokenizer
    from megatron_kd.resolve.configuration import merge

    monkeypatch.chdir(folder)
    cfg: DatasetConfig = merge(tiny_config(folder), CASES[name].words).config.dataset
    with pytest.raises(InputError, match=r"^dataset\."):
        build_datasets(
            cfg, seq_length=16, train_samples=8, valid_samples=8, test_samples=0, seed=1,
            tokenizer=NullTokenizer(VOCAB),
        )  # fmt: skip
