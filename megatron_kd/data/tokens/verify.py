"""The check of a run's tokenised files, before any rank waits for another."""

from __future__ import annotations

from megatron_kd.config.sections import DatasetConfig
from megatron_kd.data.tokens.blend_files import parse_blend
from megatron_kd.data.tokens.sidecar import hash_problems
from megatron_kd.errors import ConfigError

_FIELDS = ("data_path", "train_data_path", "valid_data_path", "test_data_path")


def check_data_files(cfg: DatasetConfig, *, hashes: bool) -> None:
    """Check every tokenised file that `cfg` names: index and sizes and, with `hashes`, what `dataset.verify` asks for.

    Raises:
        ConfigError: all that is wrong, naming field and file.
    """
    problems: list[str] = []
    for name in _FIELDS if not cfg.mock else ():
        entries = getattr(cfg, name)
        if entries is None:
            continue
        field = f"dataset.{name}"
        try:
            blend = parse_blend(field, entries, chat=cfg.chat)
        except ConfigError as error:
            problems += error.problems
            continue
        for prefix in blend.prefixes if hashes and cfg.verify == "hash" else ():
            cache = cfg.path_to_cache or f"{prefix}.cache"
            problems += [f"{field}: {problem}" for problem in hash_problems(prefix, cache)]
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))
