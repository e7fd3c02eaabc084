"""Start a run from its saved configuration alone.

    torchrun --nproc_per_node=2 -m megatron_kd.run runs/tiny/distilled/run_config.yaml logger.run_dir=runs/again

It is the same run as the one that saved the file: in the same `logger.run_dir` it continues, in another it
starts from the beginning. Flags, overrides and further `--config-file FILE` win over the file.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from megatron_kd.config.container import ConfigContainer
from megatron_kd.entry import main as run
from megatron_kd.errors import ConfigError
from megatron_kd.resolve.configuration import defaults_for
from megatron_kd.resolve.overrides import split_arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Run the file that `argv` (default: the command line) names, with its overrides.

    Returns:
        The exit code, as of `megatron_kd.entry.main`.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv in (["-h"], ["--help"]):
        print(__doc__, end="")
        return 0
    if argv and not argv[0].startswith(("-", "~", "+")) and "=" not in argv[0]:
        argv = ["--config-file", *argv]
    return run(lambda: _defaults(argv), argv)


def _defaults(argv: Sequence[str]) -> ConfigContainer:
    files = split_arguments(argv)[0]
    if not files:
        raise ConfigError(["no configuration is named; write -m megatron_kd.run RUN_DIR/run_config.yaml"])
    return defaults_for(files[0])


if __name__ == "__main__":
    raise SystemExit(main())
