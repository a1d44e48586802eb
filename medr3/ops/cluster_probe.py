"""Runs on a cluster, before anything of this project is known to be there: what each node has, as one JSON line.

Its source is sent as text (`python -c`), so it uses nothing but Ray and the standard library. With a folder as its argument it
writes a file there from the head, and every node tells whether it sees it.
"""

import json
import os
import shutil
import subprocess
import sys
import uuid
from importlib import metadata
from pathlib import Path

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

MONITORS = ("autoscaler/_private/monitor.py", "autoscaler/v2/monitor.py")
NODE_TIMEOUT_S = 60  # a node that cannot start a task within this has no place for a run either


@ray.remote(num_cpus=0, max_retries=0)
def look(marker: str) -> dict[str, object]:
    """What this node has; `sees` is null where no file is asked for."""
    try:
        version = metadata.version("medr3")
    except metadata.PackageNotFoundError:
        version = ""
    plugins = {entry.name for entry in metadata.entry_points(group="vllm.general_plugins")}
    return {
        "version": version,
        "plugin": "medr3_weights" in plugins,
        "ray": ray.__version__,
        "python": f"{sys.version_info[0]}.{sys.version_info[1]}",
        "gpus_mib": gpus(),
        "shared_memory_free": shutil.disk_usage("/dev/shm").free if Path("/dev/shm").is_dir() else 0,
        "sees": Path(marker).is_file() if marker else None,
    }


def gpus() -> list[int]:
    """The memory of every card, in MiB; none where there is no driver."""
    asked = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(asked, capture_output=True, text=True, timeout=20, check=True).stdout
        return [int(line) for line in answer.split()]
    except (OSError, subprocess.SubprocessError, ValueError):
        return []


def write_marker(folder: str) -> tuple[str, str, int]:
    """A new file in the folder, put there as a run puts its own: written, forced to the disk, renamed. Or why not; and bytes free."""
    marker = Path(folder) / f".medr3-probe-{uuid.uuid4().hex}"
    try:
        marker.parent.mkdir(parents=True, exist_ok=True)
        with Path(f"{marker}.unfinished").open("wb") as file:
            file.write(b"medr3")
            file.flush()
            os.fsync(file.fileno())
        os.replace(f"{marker}.unfinished", marker)
    except OSError as error:
        return "", error.strerror or str(error), 0
    return str(marker), "", shutil.disk_usage(folder).free


def growth() -> tuple[list[dict[str, object]], bool]:
    """Node types that the autoscaler may add, and whether that is all there is to know: on Kubernetes it runs elsewhere."""
    for command in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = command.read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        if not any(word.endswith(MONITORS) for word in words) or not is_ours(command.parent):
            continue
        path = next((word.partition("=")[2] for word in words if word.startswith("--autoscaling-config=")), "")
        return (node_types(path), True) if path else ([], True)
    return [], False


def is_ours(process: Path) -> bool:
    """Several clusters may share a machine; a process of ours knows the same control service."""
    port = ray.get_runtime_context().gcs_address.rpartition(":")[2]
    return f":{port}" in (process / "cmdline").read_text(errors="replace")


def node_types(path: str) -> list[dict[str, object]]:
    import yaml

    config = yaml.safe_load(Path(path).expanduser().read_text())
    kinds = config["available_node_types"].items()
    most = config.get("max_workers", sys.maxsize)
    return [
        {"name": name, "resources": kind.get("resources", {}), "most": min(kind.get("max_workers", most), most)}
        for name, kind in kinds
        if name != config["head_node_type"]
    ]


def main() -> None:
    folder = sys.argv[1] if len(sys.argv) > 1 else ""
    ray.init(log_to_driver=False, logging_level="ERROR")
    marker, refused, free = write_marker(folder) if folder else ("", "", 0)
    nodes = [node for node in ray.nodes() if node["Alive"]]
    asked = [
        look.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote(marker)
        for node in nodes
    ]
    answered, _ = ray.wait(asked, num_returns=len(asked), timeout=NODE_TIMEOUT_S)
    report = []
    for node, task in zip(nodes, asked, strict=True):
        about = {
            "address": node["NodeManagerAddress"], "id": node["NodeID"], "resources": node["Resources"],
            "head": "node:__internal_head__" in node["Resources"],
        }  # fmt: skip
        try:
            report.append({**about, **(ray.get(task) if task in answered else {"silent": f"no answer in {NODE_TIMEOUT_S} s"})})
        except Exception as error:  # a node that dies meanwhile
            report.append({**about, "silent": str(error).strip().splitlines()[0]})
    if marker:
        Path(marker).unlink()
    resumes = bool(folder) and (Path(folder) / "manifest.json").exists()
    types, known = growth()
    facts = {
        "nodes": report,
        "types": types,
        "growth_known": known,
        "folder": {"path": folder, "refused": refused, "free": free, "resumes": resumes},
    }
    print("medr3-probe " + json.dumps(facts), flush=True)


if __name__ == "__main__":
    main()
