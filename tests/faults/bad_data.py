"""Faults of data: malformed text, and damaged tokenised files."""

from __future__ import annotations

import gzip
import json
import os
import random
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

# Damages a file, and returns the line that it begins in, counted from 1; None where it has none.
TextDamage = Callable[[Path, random.Random], int | None]
FileDamage = Callable[[Path, random.Random], object]

_HEADER = struct.Struct("<9sQBQQ")
_HUGE_LINE = (1 << 28) + 10


def _line_replaced(make: Callable[[bytes, random.Random], bytes]) -> TextDamage:
    """One line is replaced by what `make` makes of it."""

    def damage(path: Path, draw: random.Random) -> int:
        lines = path.read_bytes().splitlines()
        at = draw.randrange(len(lines))
        before, lines[at] = lines[at], make(lines[at], draw)
        assert lines[at] != before
        path.write_bytes(b"\n".join(lines) + b"\n")
        return at + 1

    return damage


def _is(*values: object) -> TextDamage:
    return _line_replaced(lambda line, draw: json.dumps(draw.choice(values)).encode())


def cut_off(path: Path, draw: random.Random) -> int:
    """End the file within a line."""
    lines = path.read_bytes().splitlines(keepends=True)
    at = draw.randrange(len(lines))
    path.write_bytes(b"".join(lines[:at]) + lines[at][: draw.randrange(1, len(lines[at]) - 1)])
    return at + 1


def joined(path: Path, draw: random.Random) -> int:
    """Lose the end of a line."""
    lines = path.read_bytes().splitlines(keepends=True)
    at = draw.randrange(len(lines) - 1)
    lines[at] = lines[at].rstrip(b"\n")
    path.write_bytes(b"".join(lines))
    return at + 1


def zeroed(path: Path, draw: random.Random) -> int:
    """Zero a block, as a crash of the machine leaves it."""
    content = bytearray(path.read_bytes())
    start = draw.randrange(len(content) - 40)
    start += content[start] == 0x0A  # an end of line belongs to the line before
    content[start : start + 30] = bytes(30)
    path.write_bytes(content)
    return content[:start].count(b"\n") + 1


def utf16(path: Path, draw: random.Random) -> int:
    """Encode it otherwise."""
    path.write_bytes(path.read_text().encode("utf-16"))
    return 1


def huge_line(path: Path, draw: random.Random) -> int:
    """Let it end in a line that no memory should be filled with."""
    at = len(path.read_bytes().splitlines()) + 1
    os.truncate(path, path.stat().st_size + _HUGE_LINE)  # a hole: takes no disk
    return at


def compressed(path: Path, draw: random.Random) -> None:
    """Compress it, and leave its name."""
    path.write_bytes(gzip.compress(path.read_bytes()))


def empty(path: Path, draw: random.Random) -> None:
    """Leave nothing in it."""
    path.write_bytes(b"")


def missing(path: Path, draw: random.Random) -> None:
    """Delete it."""
    path.unlink()


def folder(path: Path, draw: random.Random) -> None:
    """Put a folder in its place."""
    path.unlink()
    path.mkdir()


def pipe(path: Path, draw: random.Random) -> None:
    """Put a pipe in its place, which has no writer."""
    path.unlink()
    os.mkfifo(path)


def dangling(path: Path, draw: random.Random) -> None:
    """Put a link to nothing in its place."""
    path.unlink()
    path.symlink_to(path.with_name("nothing"))


PLACE: dict[str, TextDamage] = {f.__name__: f for f in (empty, missing, folder, pipe, dangling)}

_LINES: dict[str, TextDamage] = {
    "invalid UTF-8": _line_replaced(lambda line, draw: line.replace(b'": "', b'": "\xff', 1)),
    "flipped bit": _line_replaced(lambda line, draw: bytes([line[0] ^ 1 << draw.randrange(8)]) + line[1:]),
    "no object": _is([1, 2], 3, "text", None, True, [{}]),
    "deep": _line_replaced(lambda line, draw: b"[" * 200_000),
    "long number": _line_replaced(lambda line, draw: b'{"text": ' + b"7" * 5000 + b"}"),
    "cut off": cut_off,
    "joined": joined,
    "zeroed": zeroed,
    "UTF-16": utf16,
    "huge line": huge_line,
    "compressed": compressed,
    **PLACE,
}
TEXT: dict[str, TextDamage] = {
    **_LINES,
    "wrong type": _is(*({"text": value} for value in (3, None, ["a"], {}, False))),
    "no text": _is({}, {"body": "x"}, {"Text": "x"}),
    "surrogate": _line_replaced(lambda line, draw: rb'{"text": "\ud800"}'),
}
_LEFT_OUT: tuple[dict[str, object], ...] = (
    {"reasoning_content": "y"},
    {"name": "y"},
    {"tool_calls": [{"function": {"name": "y", "arguments": {}}}]},
)
CHATS: dict[str, TextDamage] = {
    **{name: damage for name, damage in _LINES.items() if name in ("cut off", "zeroed", "no object")},
    "no messages": _is({}, {"messages": None}, {"messages": []}, {"messages": "x"}, {"text": "x"}),
    "bad role": _is(*({"messages": [{"role": role, "content": "x"}]} for role in ("root", None, 3))),
    "no content": _is(*({"messages": [{"role": "assistant", "content": value}]} for value in (3, None, ["a"]))),
    "no assistant": _is({"messages": [{"role": "user", "content": "x"}]}),
    "speaker": _is(*({"conversations": [{"from": name, "value": "x"}]} for name in (["gpt"], {"a": 1}, 3, "me"))),
    "left out": _is(*({"messages": [{"role": "assistant", "content": "x", **more}]} for more in _LEFT_OUT)),
    "empty answer": _is({"messages": [{"role": "assistant", "content": " "}]}, {"prompt": "x", "completion": ""}),
    "weight": _is(*({"messages": [{"role": "assistant", "content": "x", "weight": value}]} for value in (0.5, "0"))),
    "no message": _is({"messages": ["x"]}, {"messages": [3, {}]}),
}


def flipped(path: Path, draw: random.Random) -> None:
    """Flip a bit."""
    content = bytearray(path.read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)


def cut(path: Path, draw: random.Random) -> None:
    """Cut off its end."""
    os.truncate(path, draw.randrange(1, path.stat().st_size))


def longer(path: Path, draw: random.Random) -> None:
    """Append random bytes to it."""
    with path.open("ab") as file:
        file.write(draw.randbytes(draw.randrange(1, 99)))


def copied_over(path: Path, draw: random.Random) -> None:
    """Put content of the same length in its place, as of a copy that went wrong."""
    path.write_bytes(draw.randbytes(path.stat().st_size))


def foreign_id(path: Path, draw: random.Random) -> None:
    """Put an id into a `.bin` of 16-bit ids that no tokenizer here has."""
    _put(path, 2 * draw.randrange(path.stat().st_size // 2), struct.pack("<H", draw.randrange(1000, 1 << 16)))


def _index(change: Callable[[int, int, random.Random], tuple[int, bytes]]) -> FileDamage:
    """Of an `.idx` of n sequences and m bounds, bytes are replaced from an offset on."""

    def damage(path: Path, draw: random.Random) -> None:
        _, _, _, count, bounds = _HEADER.unpack(path.read_bytes()[: _HEADER.size])
        _put(path, *change(count, bounds, draw))

    return damage


def _put(path: Path, where: int, data: bytes) -> None:
    content = bytearray(path.read_bytes())
    assert content[where : where + len(data)] != data
    content[where : where + len(data)] = data
    path.write_bytes(content)


_FIRST = _HEADER.size
FILE: dict[str, FileDamage] = {**PLACE, **{f.__name__: f for f in (cut, longer, dangling)}}
INDEX: dict[str, FileDamage] = {
    "magic": _index(lambda n, m, draw: (draw.randrange(9), b"?")),
    "version": _index(lambda n, m, draw: (9, struct.pack("<Q", draw.choice((0, 2, 1 << 60))))),
    "type code": _index(lambda n, m, draw: (17, bytes([draw.choice((0, 1, 4, 6, 7, 9, 255))]))),
    "count": _index(lambda n, m, draw: (18, struct.pack("<Q", draw.choice((0, n - 1, n + 1, 1 << 33, 1 << 61))))),
    "bounds": _index(lambda n, m, draw: (26, struct.pack("<Q", draw.choice((0, 1, m - 1, m + 1, 1 << 61))))),
    "length": _index(
        lambda n, m, draw: (_FIRST + 4 * draw.randrange(n), struct.pack("<i", draw.choice((0, -1, 10**6, -(2**31)))))
    ),
    "pointer": _index(
        lambda n, m, draw: (
            _FIRST + 4 * n + 8 * draw.randrange(n),
            struct.pack("<q", draw.choice((-2, 3, 1 << 40, 1 << 62, -(1 << 63)))),
        )
    ),
    "order of documents": _index(
        lambda n, m, draw: (
            _FIRST + 12 * n + 8 * draw.randrange(m),
            struct.pack("<q", draw.choice((-1, n + 5, 1 << 40))),
        )
    ),
}
SAME_SIZE: dict[str, FileDamage] = {f.__name__: f for f in (flipped, copied_over)}  # what hashes alone can tell


def other_json(path: Path, draw: random.Random) -> None:
    """Put JSON into a sidecar that is none of a sidecar's."""
    whole = json.loads(path.read_text())
    path.write_text(
        json.dumps(
            draw.choice(
                (
                    [],
                    3,
                    {**whole, "files": []},
                    {**whole, "format": 2},
                    {**whole, "files": {"/../../x": {"size": 1, "sha256": "0" * 64}}},
                )
            )
        )
    )


def copy_of(prefix: Path, folder: Path) -> Path:
    """The files at a prefix, copied into a folder."""
    for path in prefix.parent.glob(f"{prefix.name}.*"):
        if path.is_file():
            shutil.copy(path, folder / path.name)
    return folder / prefix.name
