"""SLURM jobs: the template `launch/slurm/distill.sbatch` with a run's values in it, and its submission."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from megatron_kd.errors import InputError

_TEMPLATE = Path("launch/slurm/distill.sbatch")


@dataclass(frozen=True, kw_only=True)
class SlurmJob:
    """The resources and options of a job.

    Attributes:
        ranks_per_node: ranks of a node, one per GPU if it has any.
        gpus: whether a node has GPUs.
        directives: further options of sbatch, long ones by name, without dashes; None for one without a value.
        container: an image for pyxis.
        mounts: of the container, `FROM:TO[,FROM:TO]`.
    """

    nodes: int
    ranks_per_node: int
    gpus: bool = True
    directives: Mapping[str, str | None] = field(default_factory=dict)
    container: str | None = None
    mounts: str | None = None


def template() -> str:
    """The template of the working directory, else the one of this checkout.

    Raises:
        InputError: there is neither.
    """
    for folder in (Path(), Path(__file__).resolve().parents[2]):
        if (folder / _TEMPLATE).is_file():
            return (folder / _TEMPLATE).read_text(encoding="utf-8")
    raise InputError(f"{_TEMPLATE}: is neither here nor beside the package; run this in a checkout of the project")


def job_script(
    text: str, job: SlurmJob, *, recipe: str, run_dir: str, overrides: Sequence[str], python: str | None
) -> str:
    """The template `text` with a job's values.

    Args:
        recipe, run_dir: as the ranks are to see them.
        overrides: files, flags and overrides of the recipe.
        python: that of the ranks; None leaves the template's, which is found on the PATH.

    Raises:
        InputError: the template lacks a line that is to be set.
    """
    directives: dict[str, str | None] = {
        "nodes": str(job.nodes),
        "gpus-per-node": str(job.ranks_per_node),
        "output": f"{run_dir.replace('%', '%%')}/slurm/%j.out",
        **job.directives,
    }
    variables = {
        "RECIPE": shlex.quote(recipe),
        "RUN_DIR": shlex.quote(run_dir),
        "OVERRIDES": f"({shlex.join(overrides)})",
        "RANKS_PER_NODE": str(job.ranks_per_node),
        "PYTHON": None if python is None else shlex.quote(python),
        "CONTAINER_IMAGE": None if job.container is None else shlex.quote(job.container),
        "CONTAINER_MOUNTS": None if job.mounts is None else shlex.quote(job.mounts),
    }
    lines = text.splitlines()
    for name, value in variables.items():
        if value is not None:
            lines = _replaced(lines, f"{name}=", [f"{name}={value}"])
    if not job.gpus:
        lines = _replaced(lines, "#SBATCH --gpus-per-node=", [])
        del directives["gpus-per-node"]
    for name, value in directives.items():
        lines = _with_directive(lines, f"#SBATCH --{name}", value)
    return "\n".join(lines) + "\n"


def submit(script: Path) -> str:
    """Submit a script, and return the job's id.

    Raises:
        InputError: there is no sbatch here, or it refuses the job.
    """
    try:
        done = subprocess.run(["sbatch", "--parsable", str(script)], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise InputError(
            "sbatch: is not installed here; submit on a login node of the cluster, or print the job with --dry-run"
        ) from None
    if done.returncode != 0:
        raise InputError(f"sbatch refuses {script}: {done.stderr.strip()}")
    return done.stdout.strip().partition(";")[0]


def _with_directive(lines: list[str], directive: str, value: str | None) -> list[str]:
    line = directive if value is None else f"{directive}={shlex.quote(value)}"  # sbatch reads quotes as a shell does
    for start in (f"{directive}=", directive):
        if any(known == start or (start.endswith("=") and known.startswith(start)) for known in lines):
            return _replaced(lines, start, [line])
    first = next(known for known in lines if known.startswith("#SBATCH "))
    return _replaced(lines, first, [first, line])


def _replaced(lines: list[str], start: str, by: list[str]) -> list[str]:
    """`lines` with other lines for the first one that begins with `start`."""
    place = next((index for index, line in enumerate(lines) if line.startswith(start)), None)
    if place is None:
        raise InputError(f"{_TEMPLATE}: has no line `{start}...`; take the project's own template")
    return [*lines[:place], *by, *lines[place + 1 :]]
