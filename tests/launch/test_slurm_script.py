"""The SLURM job that `megatron-kd launch --slurm` writes, and what it refuses; without a SLURM."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from megatron_kd.commands.cli import main
from megatron_kd.errors import InputError
from megatron_kd.launch.slurm import SlurmJob, job_script, submit, template
from tests.config.base import RECIPE
from tests.recipes.launch import ROOT


def script(job: SlurmJob, **values: object) -> str:
    given = {"recipe": "recipes/a b.py", "run_dir": "runs/x's", "overrides": ["a.b=[1,2]", "c='d e'"], "python": None}
    return job_script(template(), job, **{**given, **values})  # type: ignore[arg-type]


def directives(text: str) -> list[str]:
    return [line.removeprefix("#SBATCH ") for line in text.splitlines() if line.startswith("#SBATCH ")]


SHOW = 'case "$*" in *hostnames*) echo first; echo second;; *node*) echo "NodeName=first NodeAddr=10.0.0.7 X=1";; esac'


def run_job(text: str, srun: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a job's script, with stand-ins for two of SLURM's programs; `called` has how scontrol was."""
    for name, body in {"srun": srun, "scontrol": f'echo "$@" >> called; {SHOW}'}.items():
        (folder / name).write_text(f"#!/bin/bash\n{body}\n")
        (folder / name).chmod(0o755)
    (folder / "job.sh").write_text(text)
    environment = {
        **os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "SLURM_JOB_ID": "41234", "SLURM_CPUS_ON_NODE": "64",
        "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_JOB_NUM_NODES": "2", "SLURM_RESTART_COUNT": "1",
    }  # fmt: skip
    return subprocess.run(["bash", "job.sh"], cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_values_reach_the_shell_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "runs/x's").mkdir(parents=True)
    (tmp_path / "runs/x's/exit_code").write_text("75\n")  # of an earlier attempt
    text = script(SlurmJob(nodes=2, ranks_per_node=4, container="img", mounts="/a:/b"))
    done = run_job(text, 'printf "%s\\n" "$@"; exit 3', tmp_path)
    assert done.returncode == 3  # what srun said, since no rank wrote a code
    assert done.stderr == ""
    words = done.stdout.splitlines()
    for word in (
        "--container-image=img", "--container-mounts=/a:/b", "--cpus-per-task=64", "--nnodes=2", "--nproc-per-node=4",
        "--rdzv-endpoint=10.0.0.7:21234", "--rdzv-id=41234.1",
    ):  # fmt: skip
        assert word in words
    assert words[-4:] == ["recipes/a b.py", "a.b=[1,2]", "c='d e'", "--output_dir=runs/x's"]


@pytest.mark.parametrize(
    ("recorded", "returned", "code", "requeued"),
    [("75", 1, 75, True), ("17", 1, 17, False), ("0", 0, 0, False), ("0", 9, 9, False), ("1", 1, 1, False)],
)
def test_only_a_run_that_was_asked_to_stop_goes_back_into_the_queue(
    recorded: str, returned: int, code: int, requeued: bool, tmp_path: Path
) -> None:
    text = script(SlurmJob(nodes=1, ranks_per_node=1), run_dir="run")
    assert run_job(text, f"echo {recorded} > run/exit_code; exit {returned}", tmp_path).returncode == code
    assert ("requeue 41234" in (tmp_path / "called").read_text()) is requeued


def test_a_file_that_a_run_at_work_has_reserved_stays(tmp_path: Path) -> None:
    text = script(SlurmJob(nodes=1, ranks_per_node=1), run_dir="run")
    (tmp_path / "run").mkdir()
    for said, there in (("\n", True), ("75\n", False)):
        (tmp_path / "run/exit_code").write_text(said)
        assert run_job(text, "test -e run/exit_code", tmp_path).returncode == (0 if there else 1)


def test_directives() -> None:
    with_gpus = directives(script(SlurmJob(nodes=4, ranks_per_node=8, directives={"time": "1-0", "qos": "high"})))
    assert {"--nodes=4", "--gpus-per-node=8", "--ntasks-per-node=1", "--time=1-0", "--qos=high"} <= set(with_gpus)
    assert {"--signal=USR1@120", "--requeue", "--output='runs/x'\"'\"'s/slurm/%j.out'"} <= set(with_gpus)
    without = directives(script(SlurmJob(nodes=1, ranks_per_node=2, gpus=False, directives={"contiguous": None})))
    assert "--contiguous" in without and not any(line.startswith("--gpus") for line in without)


def test_a_template_that_lacks_a_line_is_refused() -> None:
    broken = template().replace("RUN_DIR=", "run_dir=")
    with pytest.raises(InputError, match="has no line `RUN_DIR="):
        job_script(broken, SlurmJob(nodes=1, ranks_per_node=1), recipe="r", run_dir="d", overrides=[], python=None)


def test_the_template_holds_nothing_of_a_site_and_is_valid_bash(tmp_path: Path) -> None:
    assert subprocess.run(["bash", "-n", str(ROOT / "launch/slurm/distill.sbatch")], check=False).returncode == 0
    assert not [line for line in directives(template()) if line.startswith(("--partition", "--account", "--qos"))]


def test_without_sbatch_and_with_one_that_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match=r"sbatch: is not installed here; .* --dry-run"):
        submit(tmp_path / "job.sh")
    (tmp_path / "sbatch").write_text("#!/bin/sh\necho 'error: invalid partition' >&2; exit 1\n")
    (tmp_path / "sbatch").chmod(0o755)
    with pytest.raises(InputError, match=r"sbatch refuses .*job.sh: error: invalid partition"):
        submit(tmp_path / "job.sh")


def test_the_configuration_is_checked_for_the_ranks_of_all_nodes(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = ["launch", "--slurm", str(RECIPE), f"logger.run_dir={tmp_path}/run"]
    assert main([*words, "--nodes", "3", "--gpus-per-node", "1", "model.hiden_size=8", "checkpoint.resume=never"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    for line in ("3 data-parallel ranks", "model.hiden_size: unknown key", "checkpoint.resume=never: a run that is"):
        assert line in err
    assert main([*words, "--nodes", "2", "--nproc", "2", "--partition", "cpu", "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert {"--nodes=2", "--partition=cpu"} <= set(directives(printed)) and "RANKS_PER_NODE=2" in printed
    assert list(tmp_path.iterdir()) == []


def test_arguments_of_the_other_launcher_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["launch", "--local", str(RECIPE), "--nodes=2", "--container=x", "--nproc=0", "--max-restarts=-1"]) == 2
    err = capsys.readouterr().err
    for option in ("--nodes: goes with --slurm", "--container: goes with --slurm", "--nproc 0:", "--max-restarts -1:"):
        assert f"error: {option}" in err
    assert (
        main(["launch", "--slurm", str(RECIPE), "--max-restarts=2", "--nproc=1", "--gpus-per-node=1", "--mounts=a"])
        == 2
    )
    err = capsys.readouterr().err
    for option in ("--max-restarts: goes with --local", "--nproc, --gpus-per-node:", "--mounts: needs a container"):
        assert f"error: {option}" in err


def test_a_refused_job_leaves_the_exit_code_of_the_run_before(tmp_path: Path) -> None:
    text = script(SlurmJob(nodes=1, ranks_per_node=1), run_dir="run")
    (tmp_path / "run").mkdir()
    (tmp_path / "run/exit_code").write_text("17\n")
    assert run_job(text, "exit 2", tmp_path).returncode == 2
    assert (tmp_path / "run/exit_code").read_text() == "17\n"
    assert run_job(text, "rm run/exit_code.earlier; echo 75 > run/exit_code; exit 1", tmp_path).returncode == 75
    assert (tmp_path / "run/exit_code").read_text() == "75\n"
