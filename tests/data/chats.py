"""Conversations for the tests, and two templates that render them alike: one marks what the assistant writes."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

PLAIN = (
    "{% for message in messages %}<|{{ message['role'] }}|>\n{{ message['content'] }}<|endoftext|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
MARKED = (
    "{% for message in messages %}<|{{ message['role'] }}|>\n"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] }}<|endoftext|>\n{% endgeneration %}"
    "{% else %}{{ message['content'] }}<|endoftext|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)

_WORDS = ("parse", "argument", "option", "value", "help", "usage", "group", "action", "déjà", "漢字", "🙂", "42")


def chat(*turns: str, system: str | None = None) -> list[dict[str, str]]:
    """A conversation in which user and assistant take turns."""
    first = [{"role": "system", "content": system}] if system else []
    return [*first, *({"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(turns))]


def chats(count: int, seed: int = 0, longest: int = 12) -> list[list[dict[str, str]]]:
    """Conversations of one to three exchanges."""
    rng = random.Random(seed)

    def words() -> str:
        return " ".join(rng.choice(_WORDS) for _ in range(rng.randint(1, longest)))

    return [
        chat(*(words() for _ in range(2 * rng.randint(1, 3))), system=words() if rng.random() < 0.3 else None)
        for _ in range(count)
    ]


def write_chats(path: Path, conversations: list[Any]) -> Path:
    """A file of messages, one conversation a line."""
    path.write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in conversations))
    return path
