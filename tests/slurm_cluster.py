"""A real SLURM of several nodes on this machine: munged, slurmctld and a slurmd a node, in a folder of their own.

Needs root, since munged and slurmd change users. Debian's packages `slurm-wlm` and `munge` are installed where they are
missing.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.ranks import _free_port

_PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch")
_DELAY_S = 5  # that a requeued job waits for; 120 by default

_CONF = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire={delay}
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SwitchType=switch/none
MpiDefault=none
JobRequeue=1
FirstJobId={first_job}
ReturnToService=2
KillWait=60
SchedulerParameters=sched_interval=1,bf_interval=1
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


@dataclass(frozen=True)
class Cluster:
    """Where a running SLURM's configuration lies; SLURM_CONF names it to SLURM's programs."""

    conf: Path

    def command(self, *words: str) -> str:
        """Run one of SLURM's programs, and return what it prints."""
        environment = {**os.environ, "SLURM_CONF": str(self.conf)}
        done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=30, check=False)
        assert done.returncode == 0, f"{' '.join(words)}: {done.stderr}"
        return done.stdout

    def job(self, number: str) -> dict[str, str]:
        """The fields of `scontrol show job`: JobState, Restarts, ExitCode and more."""
        text = self.command("scontrol", "--oneliner", "show", "job", number)
        return {name: value for name, equals, value in (word.partition("=") for word in text.split()) if equals}


@contextmanager
def running_cluster(nodes: int) -> Iterator[Cluster]:
    """Bring up a SLURM of `nodes` nodes of 2 CPUs, and take it down.

    Raises:
        AssertionError: it cannot be brought up, and why.
    """
    _install()
    folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))  # one that munged's user can get at
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        folder.chmod(0o755)
        cluster = Cluster(_write_conf(folder, nodes))
        _start_munged(folder, stack)
        environment = {**os.environ, "SLURM_CONF": str(cluster.conf)}
        _start("slurmctld", ["slurmctld", "-D"], folder, stack, env=environment)
        wait_until(lambda: "UP" in _printed(["scontrol", "ping"], environment), 30, lambda: _logs(folder))
        for number in range(1, nodes + 1):
            _start(f"slurmd-n{number}", ["slurmd", "-D", "-N", f"n{number}"], folder, stack, env=environment)
        idle = ["sinfo", "--noheader", "--states=idle", "--format=%D"]
        wait_until(lambda: _printed(idle, environment).strip() == str(nodes), 30, lambda: _logs(folder))
        stack.callback(_cancel_all, cluster)
        yield cluster


def wait_until(condition: Callable[[], bool], seconds: float, explain: Callable[[], str]) -> None:
    """Wait until `condition` holds.

    Raises:
        AssertionError: it did not within `seconds`; the message is that of `explain`.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s:\n{explain()}"
        time.sleep(0.05)


def _install() -> None:
    missing = [name for name in _PROGRAMS if shutil.which(name) is None]
    if not missing and os.geteuid() == 0:
        return
    without = 'leave these tests out with `pytest -m "not slurm"`'
    assert os.geteuid() == 0, f"a SLURM of our own needs root: run as root, or {without}"
    assert shutil.which("apt-get"), f"{', '.join(missing)} not found: install SLURM and munge, or {without}"
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for words in (["update"], ["install", "-y", "--no-install-recommends", "slurm-wlm", "munge"]):
        command = ["apt-get", "-q", "-o", "DPkg::Lock::Timeout=120", *words]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{' '.join(command)}: {done.stderr[-2000:]}\n{without}"


def _write_conf(folder: Path, nodes: int) -> Path:
    host = socket.gethostname().partition(".")[0]
    first_job = 1 + secrets.randbelow(9000)  # by which jobs choose their port: other clusters of tests run here, too
    text = _CONF.format(host=host, port=_free_port(), folder=folder, delay=_DELAY_S, first_job=first_job)
    for number in range(1, nodes + 1):
        text += f"NodeName=n{number} NodeHostname={host} NodeAddr=127.0.0.1 Port={_free_port()} CPUs=2\n"
    (folder / "state").mkdir()
    (folder / "slurm.conf").write_text(text)
    return folder / "slurm.conf"


def _start_munged(folder: Path, stack: ExitStack) -> None:
    home = folder / "munge"
    home.mkdir(mode=0o755)
    (home / "key").write_bytes(secrets.token_bytes(1024))
    (home / "key").chmod(0o400)
    for path in (home, home / "key"):
        shutil.chown(path, "munge", "munge")
    files = {"socket": "socket", "key-file": "key", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
    options = [f"--{option}={home / name}" for option, name in files.items()]
    command = ["munged", "--foreground", *options]
    _start("munged", command, folder, stack, user="munge", group="munge", extra_groups=[])
    wait_until((home / "socket").exists, 20, lambda: _logs(folder))


def _start(name: str, command: list[str], folder: Path, stack: ExitStack, **settings: object) -> None:
    with (folder / f"{name}.out").open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, cwd="/", **settings)  # type: ignore[call-overload]
    stack.callback(_end, process)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=10)
    process.kill()
    process.wait()


def _cancel_all(cluster: Cluster) -> None:
    if jobs := cluster.command("squeue", "--noheader", "--format=%i").split():
        cluster.command("scancel", *jobs)
    with contextlib.suppress(AssertionError):  # daemons that go take their steps with them
        wait_until(lambda: not cluster.command("squeue", "--noheader").strip(), 25, lambda: "jobs are left")


def _printed(command: list[str], environment: dict[str, str]) -> str:
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30, check=False).stdout


def _logs(folder: Path) -> str:
    paths = [*folder.glob("*.out"), *folder.glob("*.log"), *folder.glob("munge/log")]
    return "\n".join(f"--- {path.name}\n{path.read_text(errors='replace')[-1500:]}" for path in paths)
