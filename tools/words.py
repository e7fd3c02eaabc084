"""A lint for prose: phrases that the field has a better word for, in documents, docstrings, comments and messages.

    python -m tools.words                   what `make check` runs: exit code 1 if a phrase is found
    python -m tools.words megatron_kd       one file or folder, also one that is in `NOT_YET`

Code spans and fenced blocks are not read: they show what programs read and print, which is checked where it is written.
"""

from __future__ import annotations

import argparse
import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CHECKED = (
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "docs",
    "recipes",
    "conf",
    "launch",
    "tools",
    "megatron_kd",
    "tests",
)
SUFFIXES = (".md", ".py", ".yaml", ".sbatch")

# Still to be rewritten; delete a line once `python -m tools.words PATH` finds nothing there.
NOT_YET = (
    "tests/reliability/",  # regular expressions that match messages, and a field that is called `told`
    "tests/faults/numbers.py",  # the same
    "docs/reliability.md",  # written by `make reliability`
)
# These list the phrases.
EXEMPT = ("tools/words.py", "tests/tools/test_words.py")


@dataclass(frozen=True)
class Word:
    """A phrase to avoid.

    Attributes:
        pattern: a regular expression, matched without regard to case; a space in it matches any white space.
        instead: the replacement, or several to choose from.
        example: a text with the phrase, for the test.
        why: the reason to avoid it.
    """

    pattern: str
    instead: str
    example: str
    why: str

    @property
    def compiled(self) -> re.Pattern[str]:
        """The pattern, ready to search with."""
        return re.compile(self.pattern.replace(" ", r"\s+"), re.IGNORECASE | re.MULTILINE)


_UNIT = r"an? (token|rank|machine|GPU|step|row|layer|core|document|number|weight|line|problem|second|forward|chunk)\b"
_TERM = "the field has a standard term"
_RATE = "a rate is written with `per`"
_REPORT = "people tell and say; a run, a check or a log reports"
_LITERAL = "translated word for word"
_SUBJECT = "name the thing"

WORDS = [
    Word(r"\bnumbers? that (is|are) none\b", "non-finite, NaN or Inf", "a number that is none", _TERM),
    Word(r"\bnot a number\b", "NaN, not finite", "a loss that is not a number", _TERM),
    Word(r"\bserve[sd]?\b", "support, handle; deploy (a model)", "a layout that is not served", _TERM),
    Word(r"\bteacher's place\b", "teacher placement", "the teacher's place is not saved", _TERM),
    Word(r"\bplaces? (for|of) the teacher\b", "teacher placement", "every place for the teacher", _TERM),
    Word(r"\bheld out\b", "held-out", "the loss on text held out", _TERM),
    Word(r"\bputs? out\b", "output, produce", "layers that put out a tuple", _TERM),
    Word(r"\bprocessor (time|seconds)\b", "CPU time", "0.45 processor seconds more", _TERM),
    Word(r"\bmade-up\b", "mock, synthetic", "three steps on made-up data", _TERM),
    Word(r"\bfrom nothing\b", "from scratch", "trained from nothing", _TERM),
    Word(r"\blikeliest\b", "most likely, top-k", "the k likeliest tokens", _TERM),
    Word(r"\bso many\b", "N, evenly spaced", "every so many layers", _TERM),
    Word(r"\bat work\b", "running, active", "another run is at work in the folder", _TERM),
    Word(r"\bstand(s|ing)? still\b", "idle, pause", "a pipeline stands still", _TERM),
    Word(rf"\b(nats|GFLOP|GB|MB|ms|bytes?|sums?|scales?) {_UNIT}", "per", "cross entropy in nats a token", _RATE),
    Word(rf"\b(one|line|document|row|once|threads?|messages?) {_UNIT}", "per", "a document a line", _RATE),
    Word(r"\bcop(y|ies) an? (machine|rank|GPU|node)\b", "per", "one copy a machine", _RATE),
    Word(r"\btold\b", "report, raise, name, give", "all problems are told at once", _REPORT),
    Word(r"\btells? of\b", "describe, report, name", "a record that tells of the step", _REPORT),
    Word(r"\b(is|are|was|were|be) said\b", "state, report", "the reason is said at the start", _REPORT),
    Word(r"\bnobody\b", "no rank, no process, nothing", "a collective that nobody answers", _REPORT),
    Word(r"\bvouch(es|ed)?\b", "verify, cover", "nothing vouches for the bytes", _REPORT),
    Word(r"\bbelieved\b", "trust", "checked before it is believed", _REPORT),
    Word(r"\b(go|goes|going|went) on\b(?! (top|the)\b)", "resume, continue", "the same command goes on", _LITERAL),
    Word(r"\bparted\b", "separate, split, diverge", "names parted by spaces", _LITERAL),
    Word(
        r"(?<!there\s)\b(is|are|was|were) (?-i:none)\b(?! of\b)",
        "is not one, is invalid",
        "an id that is none",
        _LITERAL,
    ),
    Word(
        r"(?<!there\s)\b(is|are|was|were) no (?!(longer|more|less|better|different)\b)\w+",
        "is not a, invalid",
        "a label that is no id",
        _LITERAL,
    ),
    Word(r"\bunbroken\b", "uninterrupted", "the losses of the unbroken run", _LITERAL),
    Word(r"\bin vain\b", "without success, times out", "a rank that is waited for in vain", _LITERAL),
    Word(r"\bas if nothing had been\b", "as if nothing had happened", "it runs as if nothing had been", _LITERAL),
    Word(r"\bat the (first|second|next) attempt\b", "on the ... attempt", "gone at the second attempt", _LITERAL),
    Word(
        r"\b(is|are|was|were) of (an?|another|other|the|this|those|that|what)\b(?! no\b)",
        "belong to, come from, cover",
        "the weights are of another model",
        _LITERAL,
    ),
    Word(r"(?<!must\s)\bl(ies|ie|ay) (in|on|at|beside|below|under)\b", "is in, is on", "it lies in memory", _LITERAL),
    Word(r"\blook(s|ed|ing)? at\b", "check, inspect, read", "sizes are looked at first", _LITERAL),
    Word(r"\bbut for\b", "except for", "equal but for rounding", _LITERAL),
    Word(r"\banew\b", "again, from scratch", "it is built anew", _LITERAL),
    Word(r"\bas ever\b", "as usual, unchanged", "a function of the step as ever", _LITERAL),
    Word(r"\bas a rule\b", "usually", "of the hardware as a rule", _LITERAL),
    Word(r"\bdealt\b", "assign, distribute, process", "layers are dealt to the stages", _LITERAL),
    Word(r"\blet(s|ting)? go of\b", "free, release", "buffers are let go of", _LITERAL),
    Word(r"\bmeets? (runs|an?|with|all|two|no)\b", "hit, encounter; inject", "a step that meets a NaN", _LITERAL),
    Word(r"\bof (no )?use to\b", "useful for; useless", "which is of use to tests only", _LITERAL),
    Word(r"\A\s*(?-i:What(ever)?)\b", "begin with the noun", "What a run writes.", _SUBJECT),
    Word(r"^#+ What\b", "a noun as the heading's subject", "## What travels", _SUBJECT),
]


@dataclass(frozen=True)
class Passage:
    """A text of a file, and the line that it begins on."""

    line: int
    text: str


@dataclass(frozen=True)
class Finding:
    """A phrase at a line of a file, and its replacement."""

    path: Path
    line: int
    phrase: str
    word: Word

    def __str__(self) -> str:
        name = self.path.relative_to(ROOT) if self.path.is_relative_to(ROOT) else self.path
        return f"{name}:{self.line}: {self.phrase} -> {self.word.instead} ({self.word.why})"


def findings(path: Path) -> list[Finding]:
    """All phrases of one file, by line."""
    text = path.read_text(encoding="utf-8")
    read = {".py": _python, ".md": _markdown}.get(path.suffix, _commented)
    return sorted(
        (
            Finding(path, passage.line + passage.text.count("\n", 0, hit.start()), " ".join(hit.group().split()), word)
            for passage in read(text)
            for word in WORDS
            for hit in word.compiled.finditer(_without_code(passage.text))
        ),
        key=lambda found: found.line,
    )


def _without_code(text: str) -> str:
    """`text` with code spans blanked out, at the same length and with the same lines."""
    return re.sub(r"`(?:[^`\n]|\n(?!\s*\n))+`", lambda span: re.sub(r"[^\n]", "`", span.group()), text)


def _markdown(text: str) -> Iterator[Passage]:
    """The whole document without its fenced blocks."""

    def blank(fence: re.Match[str]) -> str:
        return "\n" * fence.group().count("\n")

    yield Passage(1, re.sub(r"^```.*?^```$", blank, text, flags=re.MULTILINE | re.DOTALL))


def _commented(text: str) -> Iterator[Passage]:
    """The whole file, without the marks of comments at the beginning of lines."""
    yield Passage(1, re.sub(r"^[ \t]*#[ \t]?", "", text, flags=re.MULTILINE))


def _python(text: str) -> Iterator[Passage]:
    """Strings of several words, docstrings included, and comments; those on successive lines are one passage."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            yield Passage(node.lineno, node.value)
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    comments = [(token.start, token.string.lstrip("# ")) for token in tokens if token.type == tokenize.COMMENT]
    block: list[str] = []
    for index, ((line, column), comment) in enumerate(comments):
        block.append(comment)
        following = comments[index + 1][0] if index + 1 < len(comments) else None
        if following != (line + 1, column):
            yield Passage(line - len(block) + 1, "\n".join(block))
            block = []


def files_below(paths: Iterable[Path]) -> Iterator[Path]:
    """The files of `paths` that hold prose, those of folders by name."""
    for path in paths:
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.suffix in SUFFIXES and not _begins(file, EXEMPT):
                yield file


def _begins(path: Path, beginnings: Sequence[str]) -> bool:
    return path.is_relative_to(ROOT) and str(path.relative_to(ROOT)).startswith(beginnings)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the findings. Returns the exit code: 1 if there are any."""
    parser = argparse.ArgumentParser(prog="python -m tools.words", description="Find phrases to be replaced.")
    parser.add_argument("paths", nargs="*", type=Path, help="files and folders (all but those of NOT_YET)")
    paths = [path.resolve() for path in parser.parse_args(argv).paths]
    if paths:
        files = list(files_below(paths))
    else:
        files = [file for file in files_below(ROOT / name for name in CHECKED) if not _begins(file, NOT_YET)]
    found = [one for file in files for one in findings(file)]
    for one in found:
        print(one)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
