"""How far a tokenisation has come: what went into its files so far, and where in the inputs it is."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

from megatron_kd.data.raw.chunks import Cursor
from megatron_kd.data.raw.documents import Encoded


@dataclass
class Counts:
    """Counts for a pair of files. `tokens` includes the end-of-document ids; `text_bytes` counts UTF-8 bytes."""

    documents: int = 0
    tokens: int = 0
    text_bytes: int = 0
    empty: int = 0  # documents dropped
    malformed: int = 0  # records skipped
    first_malformed: str | None = None
    learnt: int | None = None  # tokens of the assistant; None where all are to be learnt

    @property
    def bytes_per_token(self) -> float:
        """How many bytes of text a token stands for."""
        return self.text_bytes / max(self.tokens, 1)

    def __str__(self) -> str:
        text = ", ".join(
            (_count(self.documents, "document"), _count(self.text_bytes, "byte"), _count(self.tokens, "token"))
        )
        text += f", {self.bytes_per_token:.2f} bytes per token"
        text += f", {self.learnt:,} of them the assistant's" if self.learnt is not None else ""
        text += f", {_count(self.empty, 'empty document')} dropped" if self.empty else ""
        return text + (f", {_count(self.malformed, 'malformed record')} skipped" if self.malformed else "")

    def add(self, chunk: Encoded) -> None:
        """Count a chunk in."""
        self.documents += len(chunk.lengths)
        self.tokens += len(chunk.ids)
        self.text_bytes += chunk.text_bytes
        self.empty += chunk.empty
        self.malformed += len(chunk.malformed)
        self.first_malformed = self.first_malformed or next(iter(chunk.malformed), None)
        if chunk.loss_mask is not None:
            self.learnt = (self.learnt or 0) + int(chunk.loss_mask.sum())


@dataclass
class Progress:
    """How far a run has come: one line of the journal."""

    cursor: Cursor = field(default_factory=Cursor)
    counts: Counts = field(default_factory=Counts)
    file_bytes: int = 0  # of the inputs

    @classmethod
    def of_line(cls, line: str) -> Progress | None:
        """None for a line that was not written to its end."""
        try:
            value = json.loads(line)
            return cls(Cursor(**value["cursor"]), Counts(**value["counts"]), value["file_bytes"])
        except (ValueError, KeyError, TypeError):
            return None


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s' * (number != 1)}"
