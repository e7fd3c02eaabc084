"""Values that other frameworks give to their settings, as the fields here spell them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from megatron_kd.config.other_names import RESUMING
from megatron_kd.config.text_files import is_text_file

_SPELLINGS: Mapping[str, Mapping[str, str]] = {
    "validation.best_metric": dict.fromkeys(("loss", "eval_loss", "val_loss", "validation_loss"), "lm_loss"),
    "scheduler.lr_decay_style": {
        **dict.fromkeys(("constant_with_warmup",), "constant"),
        **dict.fromkeys(("inverse_sqrt", "inverse_square_root"), "inverse-square-root"),
        **dict.fromkeys(("warmup_stable_decay", "wsd"), "WSD"),
    },
}
_LISTS = tuple(f"dataset.{name}data_path" for name in ("", "train_", "valid_", "test_"))


def cure_with(field: str, values: Sequence[str]) -> str:
    """The imperative that sets a field to what another framework's option asks for.

    Args:
        field: dotted.
        values: the words after the option; without any, `...` stands for the value.
    """
    given = " ".join(values)
    if field in _LISTS:
        if field == _LISTS[0] and is_text_file(given):
            return f"write dataset.text_path={given}"
        return f"write {field}=[{','.join(given.split()) or '...'}]"
    if field == "checkpoint.resume" and given and not given.isdecimal() and given not in ("auto", "never"):
        return RESUMING
    if field == "optimizer.optimizer" and given:
        known = next((name for name in ("adam", "sgd") if given.lower() in (name, f"torch.optim.{name}")), None)
        known = "adam" if given.lower().startswith("adamw") else known
        return f"write {field}={known}" if known else f"only adam and sgd are supported; write {field}=adam"
    return f"write {field}={_SPELLINGS.get(field, {}).get(given, given) or '...'}"
