"""Files whose author is hostile: what they carry must not run, and where they lead must not be gone."""

from __future__ import annotations

import contextlib
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from megatron_kd.checkpoints.contents import architecture_of
from megatron_kd.checkpoints.reading import verify
from megatron_kd.config.container import ConfigContainer
from megatron_kd.config.sections import DatasetConfig
from megatron_kd.data.tokens.tokenizer import load_huggingface
from megatron_kd.errors import MegatronKDError
from megatron_kd.huggingface.import_folder import import_hf
from tests.faults.bad_data import copy_of
from tests.faults.carriers import CARRIERS, OUTSIDE, Carrier, Places
from tests.huggingface.families import save
from tests.reliability.legs import leg, run_as_user
from tests.reliability.reference import RUN, made_once, unbroken
from tests.reliability.row import Draw, Facts, Mutant, Row
from tests.reliability.rows.data import data_config, limited, make_data, own_traceback, preprocessed, samples
from tests.tiny import tiny_config

FAMILY = "qwen2, QKV bias, tied"
LIMIT_S = 30
NAMES = tuple(CARRIERS)

_opened: list[str] = []  # paths outside of all folders that this process has opened


def _note(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and isinstance(arguments[0], str) and OUTSIDE in arguments[0]:
        _opened.append(arguments[0])


@contextlib.contextmanager
def _watched() -> Any:
    if not hasattr(_note, "on"):
        sys.addaudithook(_note)  # for good: there is no way to take it back
        _note.on = True  # type: ignore[attr-defined]
    _opened.clear()
    yield _opened


def places(draw: Draw, folder: Path) -> Places:
    """Copies of all that a carrier may be put into."""
    whole, _ = unbroken(draw)
    data, _ = made_once(draw, "data", make_data)
    model, _ = made_once(draw, "model", lambda at: str(save(FAMILY, at, num_hidden_layers=2)))
    for path in (data / "tokenizer").iterdir():
        shutil.copy(path, model / path.name)
    (folder / "data").mkdir()
    shutil.copytree(whole / "checkpoints/iter_0000006", folder / "run/checkpoints/iter_0000006")
    shutil.copytree(model, folder / "models/model")
    prefixes = [copy_of(data / name, folder / "data") for name in ("text", "chats")]
    for prefix in prefixes:
        samples(prefix)  # makes the cache
    return Places(folder / "run/checkpoints/iter_0000006", folder / "models/model", *prefixes, folder / "canary")


def readers(at: Places) -> dict[str, Callable[[], object]]:
    """The project's readers of each kind of file."""

    def chats() -> None:
        code, told = preprocessed(at.data.parent / "chats.jsonl", at.mark.parent / "out", at.model)
        if code != 0:
            raise Refused(told)

    def model() -> None:
        load_huggingface(at.model)
        import_hf(at.model, at.mark.parent / "imported")

    return {
        "checkpoint": lambda: verify(at.checkpoint),
        "foreign checkpoint": lambda: verify(at.checkpoint, need_manifest=False),
        "architecture": lambda: architecture_of(at.checkpoint),
        "model": lambda: import_hf(at.model, at.mark.parent / "imported"),
        "tokenizer": lambda: load_huggingface(at.model),
        "model and tokenizer": model,
        "chats": chats,
        "data": lambda: samples(at.data),
        "chat rows": lambda: samples(at.chats),
    }


class Refused(MegatronKDError):
    """The output of a command that ended with a nonzero exit code."""


def hostile(draw: Draw) -> Facts:
    """Put one carrier in place, read it as the project does, and then with an unsafe reader."""
    name = NAMES[draw.number % len(NAMES)]
    at = places(draw, draw.folder)
    carrier = CARRIERS[name](at)
    with limited(LIMIT_S, name), _watched() as opened:
        refused = _refused(name, carrier, readers(at)[carrier.reader], at.mark)
    assert not at.mark.exists(), f"{name}: the payload ran"
    assert not opened, f"{name}: opened {opened}"
    with contextlib.suppress(Exception):  # some readers fail on a payload, as it is not a value
        carrier.trusting()
    assert at.mark.exists(), f"{name}: the carrier is dead, and proves nothing"
    return {"refused": int(refused), "live": 1}


def _refused(name: str, carrier: Carrier, read: Callable[[], object], mark: Path) -> bool:
    try:
        read()
    except MegatronKDError as error:
        assert not mark.exists(), f"{name}: the payload ran"
        assert carrier.named is not None, f"{name}: was refused: {error}"
        assert carrier.named in str(error), f"{name}: {carrier.named} is not named in: {error}"
        return True
    except Exception as error:
        raise AssertionError(f"{name}: {'the payload ran, and then ' if mark.exists() else ''}{error!r}") from error
    assert carrier.named is None, f"{name}: was not refused"
    return False


def through_torchrun(draw: Draw) -> list[Facts]:
    """Start two ranks on each of five carriers."""
    facts = []
    for name in ("metadata", "shard", "index_cache", "template", "pickled_weights"):
        folder = draw.folder / name
        folder.mkdir()
        at = places(draw, folder)
        cfg, code = _run_that_reads(name, draw, at, folder)
        if name == "index_cache":  # that of samples of another length is in the way
            shutil.rmtree(f"{at.data}.cache")
            leg(run_as_user, cfg, code=0)
            cfg.logger.run_dir = str(folder / "again")
        carrier = CARRIERS[name](at)
        output = leg(run_as_user, cfg, code=code)
        assert carrier.named is not None and carrier.named in output, f"{name}: not named in: {output}"
        assert not own_traceback(output), output
        assert not at.mark.exists(), f"{name}: the payload ran"
        with contextlib.suppress(Exception):
            carrier.trusting()
        assert at.mark.exists(), f"{name}: the carrier is dead, and proves nothing"
        facts.append({"refused": 1, "live": 1})
    return facts


def _run_that_reads(name: str, draw: Draw, at: Places, folder: Path) -> tuple[ConfigContainer, int]:
    """A run that reads a carrier at startup, and its exit code."""
    if name in ("metadata", "shard"):
        return tiny_config(folder / "run", **{**RUN, "resume": 6}), 18
    if name == "pickled_weights":
        cfg = tiny_config(folder / "fresh", **{**RUN, "student": {"init": None, "hf_path": str(at.model)}})
        return cfg, 2
    data, tokenizer = DatasetConfig(data_path=[str(at.data)], split="1,0,0"), draw.shared / "data/tokenizer"
    if name == "template":
        data, tokenizer = DatasetConfig(text_path=f"{at.chats}.jsonl", chat=True, split="1,0,0"), at.model
    cfg = data_config(draw, data, tokenizer)
    cfg.logger.run_dir = str(folder / "fresh")
    return cfg, 2


def _told(facts: Sequence[Facts]) -> str:
    live, refused = (sum(fact[name] for fact in facts) for name in ("live", "refused"))
    assert live == len(facts)
    return (
        f"{len(NAMES)} carriers; {live} of {live} live in a reader that trusts them; {refused} refused by name, "
        f"{live - refused} left alone; 0 payloads run, 0 files opened outside"
    )


ROWS = (
    Row(
        name="hostile files",
        procedure="A payload in each place where a pickle, code, a template or a path could be: checkpoint, weights, "
        "tokenizer, YAML, chat template, hashes, caches. It must be refused by name or left alone, in seconds; nothing "
        "of it runs and no file outside is opened. A reader that trusts the same file must then run it.",
        draw=hostile,
        draws=len(NAMES),
        torchrun=through_torchrun,
        result=_told,
        mutants=(
            Mutant(
                "caches are unpickled",
                "megatron_kd/data/samples/gpt_dataset.py",
                '            for name in ("document", "sample", "shuffle"):\n',
                "            for name in ():\n",
                told="index_cache: the payload ran",
            ),
            Mutant(
                "a pickle may name what it likes",
                "megatron_kd/checkpoints/pickles.py",
                "        if name in _VALUES.get(module, ()):\n",
                "        if module:\n",
                told="metadata: (was not refused|the payload ran)",
            ),
            Mutant(
                "chat templates are rendered in no sandbox",
                "megatron_kd/data/chat/rendering.py",
                "from jinja2.sandbox import ImmutableSandboxedEnvironment\n",
                "from jinja2 import Environment as ImmutableSandboxedEnvironment\n",
                told="template: (was not refused|the payload ran)",
            ),
        ),
        mutant_draws=tuple(NAMES.index(name) for name in ("metadata", "index_cache", "template")),
    ),
)
