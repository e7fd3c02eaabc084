"""How fast a run trains, over the steps since its last logged line."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Pace:
    """Steps, and the time that they took.

    Only steps count: reading data, forward, backward and update. Validation, saving and hooks do not.

    Attributes:
        steps: their number.
        tokens: read in them, padding and masked ones included.
        loss_tokens: those that count in the loss.
        seconds: that they took together.
    """

    steps: int = 0
    tokens: int = 0
    loss_tokens: int = 0
    seconds: float = 0.0

    def after_step(self, tokens: int, loss_tokens: int, seconds: float) -> Pace:
        """This with one more step."""
        return Pace(self.steps + 1, self.tokens + tokens, self.loss_tokens + loss_tokens, self.seconds + seconds)

    def record(self) -> dict[str, float]:
        """The averages that a "train" line reports; `MEASURED_TIMES` lists their names."""
        return {
            "tokens_per_second": self.tokens / self.seconds,
            "loss_tokens_per_second": self.loss_tokens / self.seconds,
            "seconds": self.seconds / self.steps,
        }


# The fields of `metrics.jsonl` that differ between two runs of the same steps.
MEASURED_TIMES = ("timestamp", "tokens_per_second", "loss_tokens_per_second", "seconds")
