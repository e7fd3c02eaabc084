"""`python -m tests.training.golden` prints the losses of the golden run to their last bit; `--record` keeps them.

Recorded are all instruction sets that this CPU can compute with, each in a process that is held to it.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from tests.training.golden.run import CAPABILITIES, computed_elsewhere, losses, record


def main() -> None:
    """The program."""
    parser = argparse.ArgumentParser(prog="python -m tests.training.golden", description=__doc__)
    parser.add_argument("--record", action="store_true", help="rewrite the file that the test compares with")
    if not parser.parse_args().record:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(losses(Path(folder))))
        return
    found = [computed_elsewhere(capability) for capability in CAPABILITIES]
    record({run["key"]: run["losses"] for run in found})  # a capability that this CPU lacks is another one's key again
    print(f"recorded {', '.join(dict.fromkeys(run['key'] for run in found))}")


if __name__ == "__main__":
    main()
