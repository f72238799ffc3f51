"""A Slurm cluster of one node on this machine, by the daemons of Debian's packages slurm-wlm and munge."""

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest

DAEMONS = ("munged", "slurmctld", "slurmd")
# Two partitions share the node. A job of the partition `urgent` preempts those of `main`, which Slurm queues again.
# It does so after the lifetime of credentials, by default two minutes.
CONFIG = """\
ClusterName=little
SlurmctldHost=localhost
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
JobAcctGatherType=jobacct_gather/none
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SchedulerParameters=sched_interval=2,bf_interval=2
KillWait=5
ReturnToService=2
NodeName=localhost CPUs=2 RealMemory={memory}
PartitionName=main Nodes=localhost Default=YES PriorityTier=1 MaxTime=60
PartitionName=urgent Nodes=localhost PriorityTier=10 MaxTime=60
"""


def path_of(daemon: str) -> str | None:
    return shutil.which(daemon, path=f"{os.environ['PATH']}:/usr/sbin")


needs_slurm = pytest.mark.skipif(
    os.getuid() != 0 or not all(map(path_of, DAEMONS)),
    reason="no Slurm: as root, apt-get install --no-install-recommends slurm-wlm munge",
)

needs_submitit = pytest.mark.skipif(
    find_spec("submitit") is None, reason="no submitit: pip install -r requirements-slurm.txt"
)


@contextmanager
def slurm_in(folder: Path, ports: tuple[int, int]) -> Iterator[None]:
    """Start a cluster that keeps its files in `folder`. Inside the block, this process and its children use it."""
    folder.chmod(0o755)
    for name in ("state", "spool"):
        (folder / name).mkdir()
    config = folder / "slurm.conf"
    memory = psutil.virtual_memory().total // 2**20
    config.write_text(CONFIG.format(folder=folder, ports=ports, memory=memory // 2), encoding="utf-8")
    key = folder / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o600)
    files = {
        "key-file": "munge.key",
        "pid-file": "munge.pid",
        "log-file": "munge.log",
        "seed-file": "munge.seed",
    }
    munged = ["munged", "--foreground", "--force", f"--socket={folder}/munge.socket"]
    munged += [f"--{option}={folder / name}" for option, name in files.items()]
    before = os.environ.get("SLURM_CONF")
    os.environ["SLURM_CONF"] = str(config)
    with ExitStack() as daemons:
        try:
            for command in (munged, ["slurmctld", "-i", "-D"], ["slurmd", "-D", "-N", "localhost"]):
                daemons.callback(end, start(command))
            wait_for_node()
            yield
        finally:
            subprocess.run(["scancel", "--user=root"], check=False)
            os.environ.pop("SLURM_CONF")
            if before is not None:
                os.environ["SLURM_CONF"] = before


def start(command: list[str]) -> "subprocess.Popen[bytes]":
    program = path_of(command[0])
    assert program is not None
    return subprocess.Popen(
        [program, *command[1:]], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )


def end(daemon: "subprocess.Popen[bytes]") -> None:
    daemon.terminate()
    try:
        daemon.wait(15)
    except subprocess.TimeoutExpired:
        daemon.kill()
        daemon.wait()


def wait_for_node() -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        found = subprocess.run(
            ["sinfo", "--noheader", "--partition=main", "--format=%T"],
            capture_output=True,
            text=True,
            check=False,
        )
        if found.stdout.strip() == "idle":
            return
        time.sleep(0.5)
    raise TimeoutError(f"the node is {found.stdout.strip()!r}: {found.stderr.strip()}")
