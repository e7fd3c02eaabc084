"""Data that is damaged: text, tokenised files and what is written beside them."""

from __future__ import annotations

import contextlib
import io
import json
import random
import re
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from megatron_kd.commands.cli import main
from megatron_kd.config.container import ConfigContainer
from megatron_kd.config.sections import DatasetConfig, TokenizerConfig
from megatron_kd.data.samples.datasets import build_datasets
from megatron_kd.data.tokens.blend_files import check_data_files
from megatron_kd.data.tokens.byte_bpe import train_byte_bpe
from megatron_kd.data.tokens.tokenizer import NullTokenizer
from megatron_kd.errors import InputError
from tests.data.chats import MARKED, chats
from tests.faults.bad_data import CHATS, FILE, INDEX, SAME_SIZE, TEXT, copy_of, foreign_id, other_json
from tests.faults.bad_data import missing as _missing
from tests.reliability.legs import leg, run_as_user
from tests.reliability.reference import RUN, made_once
from tests.reliability.row import Draw, Facts, Mutant, Row
from tests.tiny import tiny_config

IDS = 300
SEQ = 64
DRAWS = 100
LIMIT_S = 20  # of a draw; the longest takes 2
_SIDECAR = ".sha256.json"
_MASK = ".loss_mask.bin"

# Each: what is damaged, how, and whether the files still have their sidecar (None: as drawn).
Kind = tuple[str, str, Callable[[Path, random.Random], Any], bool | None]


def _kinds() -> list[Kind]:
    kinds: list[Kind] = [("text", name, damage, None) for name, damage in TEXT.items()]
    kinds += [("chats", name, damage, None) for name, damage in CHATS.items()]
    for ending in (".bin", ".idx", _MASK):
        kinds += [(ending, name, damage, None) for name, damage in FILE.items()]
        kinds += [(ending, name, damage, True) for name, damage in SAME_SIZE.items()]
    kinds += [(".idx", name, damage, None) for name, damage in INDEX.items()]
    kinds += [(".idx", name, damage, False) for name, damage in INDEX.items()]
    kinds += [(".bin", "foreign id", foreign_id, False)]
    beside = {**FILE, **SAME_SIZE, "other JSON": other_json}
    kinds += [(_SIDECAR, name, damage, True) for name, damage in beside.items()]
    return kinds


KINDS = _kinds()
assert len(KINDS) <= DRAWS  # each occurs
_MUTANT_KINDS: tuple[tuple[str, str, bool | None], ...] = (
    ("text", "wrong type", None),
    ("chats", "left out", None),
    ("chats", "empty answer", None),
    (_MASK, "flipped", True),
    (".idx", "pointer", False),
    (".idx", "length", False),
)
MUTANT_DRAWS = tuple(
    number for number, (part, name, _, sidecar) in enumerate(KINDS) if (part, name, sidecar) in _MUTANT_KINDS
)


@contextlib.contextmanager
def limited(seconds: int, what: str) -> Iterator[None]:
    """An AssertionError in what takes longer, be it that it waits for a pipe."""

    def late(number: int, frame: FrameType | None) -> None:
        raise AssertionError(f"{what}: hangs")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def damaged(draw: Draw) -> Facts:
    """Damage one file in one way, and do what its user would."""
    part, name, damage, sidecar = KINDS[draw.number % len(KINDS)]
    whole, _ = made_once(draw, "data", make_data)
    what = f"{part}, {name}"
    with limited(LIMIT_S, what):
        if part in ("text", "chats"):
            path = copy_of(whole / part, draw.folder).with_suffix(".jsonl")
            return _text_refused(path, damage(path, draw.random), whole / "tokenizer", what)
        kind = "chats" if part == _MASK or (draw.random.random() < 0.3 and part != ".bin") else "text"
        prefix = copy_of(whole / kind, draw.folder)
        if sidecar is False or (sidecar is None and draw.random.random() < 0.5):
            Path(f"{prefix}{_SIDECAR}").unlink()
        file = Path(f"{prefix}{part}")
        damage(file, draw.random)
        return _file_refused(prefix, file, whole / kind, what, harmless=damage is _missing and part == _SIDECAR)


def make_data(folder: Path) -> None:
    """`text` and `chats`, as lines and as tokens, and `tokenizer`."""
    words = [turn["content"] for messages in chats(40) for turn in messages]
    train_byte_bpe(words, IDS, folder / "tokenizer")
    (folder / "tokenizer/chat_template.jinja").write_text(MARKED)
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in words))
    (folder / "chats.jsonl").write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in chats(40)))
    for name in ("text", "chats"):
        code, told = preprocessed(folder / f"{name}.jsonl", folder / name, folder / "tokenizer")
        assert code == 0, told


def preprocessed(text: Path, prefix: Path, tokenizer: Path) -> tuple[int, str]:
    """The exit code of the command, and what it printed."""
    words = ["--input", text, "--output-prefix", prefix, "--tokenizer", tokenizer, "--workers", 1]
    words += ["--chat"] if text.stem == "chats" else []
    told = io.StringIO()
    with contextlib.redirect_stderr(told), contextlib.redirect_stdout(told):
        code = main(["preprocess", *map(str, words)])
    return code, told.getvalue()


def _text_refused(path: Path, line: int | None, tokenizer: Path, what: str) -> Facts:
    code, told = preprocessed(path, path.parent / "out", tokenizer)
    assert code == 2, f"{what}: was not refused: exit code {code}, {told}"
    named = str(path) if line is None else f"{path}:{line}:"
    assert named in told, f"{what}: {named} is not named in: {told}"
    left = [file.name for file in path.parent.iterdir() if file.name.startswith("out.")]
    assert not left, f"{what}: left {left}"
    return {"refused": 1, "line": int(line is not None)}


def _file_refused(prefix: Path, file: Path, whole: Path, what: str, *, harmless: bool) -> Facts:
    try:
        read = samples(prefix)
    except InputError as error:
        assert error.exit_code == 2, error
        # A missing mask is named without its folder.
        gone = f"{str(prefix)!r} has no {file.name}" in str(error)
        assert str(file) in str(error) or gone, f"{what}: {file} is not named in: {error}"
        assert not harmless, f"{what}: was refused: {error}"
        return {"refused": 1, "line": 0}
    assert harmless, f"{what}: was not refused"
    assert read == samples(whole), f"{what}: other data was read"
    return {"refused": 0, "line": 0}


def samples(prefix: Path) -> list[list[list[float]]]:
    """The samples that a run reads from the tokenised files at a prefix, after its startup checks."""
    cfg = DatasetConfig(
        data_path=[str(prefix)], split="1,0,0", chat=Path(prefix).name == "chats", path_to_cache=f"{prefix}.cache"
    )
    check_data_files(cfg, hashes=True)
    ids = NullTokenizer(IDS)
    train, _, _ = build_datasets(
        cfg, seq_length=SEQ, train_samples=200, valid_samples=0, test_samples=0, seed=1, tokenizer=ids
    )
    assert train is not None
    return [[value.tolist() for value in train[index].values()] for index in range(len(train))]


def data_config(draw: Draw, data: DatasetConfig, tokenizer: Path, **run: Any) -> ConfigContainer:
    """A run of two ranks on data that is tokenised by `tokenizer`."""
    sizes = {"vocab_size": IDS}
    values: dict[str, Any] = {**RUN, "iters": 2, "student": sizes, "teacher": sizes, **run}
    cfg = tiny_config(draw.folder / "run", **values)
    cfg.validation.eval_iters = 0
    cfg.dataset, cfg.tokenizer = data, TokenizerConfig(tokenizer_model=str(tokenizer))
    return cfg


def own_traceback(output: str) -> bool:
    """Whether an error was not foreseen; torchrun itself ends in a traceback of its own."""
    return re.search(r'File "[^"]*/megatron_kd/', output) is not None


def through_torchrun(draw: Draw) -> list[Facts]:
    """Start two ranks on five damaged files, and on whole ones at the end."""
    whole, _ = made_once(draw, "data", make_data)
    choices: list[tuple[str, Callable[[Path, random.Random], Any], bool]] = [
        (".bin", SAME_SIZE["flipped"], True),
        (".bin", foreign_id, False),
        (".idx", INDEX["pointer"], False),
        (".idx", FILE["pipe"], True),
        (".jsonl", TEXT["wrong type"], True),
    ]
    facts = []
    for number, (part, damage, sidecar) in enumerate(choices):
        folder = draw.folder / f"data_{number}"
        folder.mkdir()
        prefix = copy_of(whole / "text", folder)
        if not sidecar:
            Path(f"{prefix}{_SIDECAR}").unlink()
        file = Path(f"{prefix}{part}")
        line = damage(file, draw.random)
        # Every token is read, so a foreign id is met.
        data = DatasetConfig(data_path=[str(prefix)], split="1,0,0")
        if part == ".jsonl":
            data = DatasetConfig(text_path=str(file))
        output = leg(run_as_user, data_config(draw, data, whole / "tokenizer", iters=60), code=2)
        named = str(file) if line is None else f"{file}:{line}:"
        assert named in output, f"{file.name}, {damage}: {named} is not named in: {output}"
        assert not own_traceback(output), output
        facts.append({"refused": 1, "line": int(line is not None)})
    data = DatasetConfig(data_path=[str(whole / "text")], split="1,0,0")
    leg(run_as_user, data_config(draw, data, whole / "tokenizer"), code=0)
    return facts


def _told(facts: Sequence[Facts]) -> str:
    refused, lines = (sum(fact[name] for fact in facts) for name in ("refused", "line"))
    harmless = len(facts) - refused
    assert harmless <= 3, f"{harmless} did no harm"
    return (
        f"{len(KINDS)} kinds of damage: {refused} of {refused} refused by the file's name, {lines} with the line; "
        f"{harmless} did no harm: equal data"
    )


ROWS = (
    Row(
        name="bad data",
        procedure="One file of a small corpus is damaged in one way: .jsonl of text or chats, .bin, .idx, loss mask or "
        "hashes. Preprocessing, or the start of a run that then reads all samples, must refuse it in seconds with exit "
        "code 2, the file and the line of text named; where only the hashes are gone, equal data is read.",
        draw=damaged,
        draws=DRAWS,
        torchrun=through_torchrun,
        result=_told,
        mutants=(
            Mutant(
                "the offsets of sequences in a .bin are not checked",
                "megatron_kd/data/tokens/index_file.py",
                "        if len(wrong):\n",
                "        if len(wrong) > len(index.lengths):\n",
                told=r"\.idx, pointer: (was not refused|.*not named in: the dataset holds)",
            ),
            Mutant(
                "hashes are not compared",
                "megatron_kd/data/tokens/sidecar.py",
                " if sha256_of(Path(prefix + ending)) != record.sha256\n",
                " if record.sha256 == ''\n",
                told=r"(flipped|copied_over): (was not refused|other data)",
            ),
            Mutant(
                "malformed lines are left out untold",
                "megatron_kd/data/raw/documents.py",
                "                if not self.skip_malformed:\n",
                "                if self.skip_malformed is None:\n",
                told="was not refused: exit code 0",
            ),
            Mutant(
                "what the chat template leaves out of a record is not compared",
                "megatron_kd/data/chat/conversations.py",
                "        if left_out := values_left_out(",
                "        if not where and values_left_out(",
                told="chats, left out: was not refused: exit code 0",
            ),
            Mutant(
                "empty answers are learnt",
                "megatron_kd/data/chat/turns.py",
                "    if learnt and not any(",
                "    if learnt is None and not any(",
                told="chats, empty answer: was not refused: exit code 0",
            ),
        ),
        mutant_draws=MUTANT_DRAWS,
    ),
)
