"""Which ports a Ray of this machine opens, as the kernel has it: none that another machine reaches."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from medr3.chaos.processes import below

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]
LISTENING = "0A"
# As a run starts it, with an actor, so that a worker's ports are there as well. A Ray of its own, whatever the environment names.
START = """
import sys
from pathlib import Path
from medr3.config import load
from medr3.run.services import connect_ray
import ray
connect_ray(load(Path("configs/demo.yaml"), ["run.ray_cpus=2"]))

@ray.remote(num_cpus=0)
class Actor:
    def address(self):
        return ray.util.get_node_ip_address()

actor = Actor.remote()
print("address", ray.get(actor.address.remote()), flush=True)
sys.stdin.readline()
ray.shutdown()
"""


def listening(pids: list[int]) -> list[tuple[str, str]]:
    """(command, address in hexadecimal) of every socket that listens and is held by one of these processes."""
    inodes = {}
    for pid in pids:
        for handle in Path(f"/proc/{pid}/fd").glob("*"):
            try:
                inodes[str(handle.readlink())] = Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")[:60]
            except OSError:
                continue
    found = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == LISTENING and (owner := inodes.get(f"socket:[{fields[9]}]")):
                found.append((owner, fields[1].rpartition(":")[0]))
    return found


def is_local(address: str) -> bool:
    """127.0.0.1, ::1, and 127.0.0.1 as IPv6 writes it; the kernel has them in the order of the processor's bytes."""
    return address in ("0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F")


def test_a_ray_of_this_machine_listens_to_this_machine_alone() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    driver = subprocess.Popen(
        [sys.executable, "-c", START], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )
    assert driver.stdin and driver.stdout
    try:
        while not (line := driver.stdout.readline()).startswith("address") and line:
            pass
        assert line == "address 127.0.0.1\n"
        found = listening([process.pid for process in below([driver.pid])])
        assert len(found) > 5, "the ports were not found at all"
        assert [each for each in found if not is_local(each[1])] == []
    finally:
        driver.stdin.write("\n")
        driver.stdin.flush()
        assert driver.wait(120) == 0
