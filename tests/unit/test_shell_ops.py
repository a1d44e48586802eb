"""The machine's checks."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from medr3.errors import UserError
from medr3.ops.preflight import Needs, available_memory, check_disk, check_port, check_run_folder, preflight


def test_a_machine_that_has_enough_passes(tmp_path: Path) -> None:
    checks = preflight(tmp_path / "runs" / "x", needs=Needs(memory=1, shared_memory=1, disk=1))
    assert all(check.ok for check in checks)
    assert list((tmp_path / "runs" / "x").iterdir()) == []


def test_every_failure_is_one_line_with_its_mend(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(UserError) as caught:
            preflight(tmp_path, http_port=taken.getsockname()[1], needs=Needs(memory=2**60, shared_memory=2**60, disk=2**60))
    lines = str(caught.value).splitlines()
    assert [line.partition(":")[0] for line in lines] == ["memory", "shared memory", "disk", "port"]
    assert all("; " in line for line in lines)


def test_a_file_in_the_place_of_the_run_folder_is_found(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    check = check_run_folder(tmp_path / "file" / "run")
    assert not check.ok
    assert "set run.folder" in str(check)


def test_a_free_port_is_free() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    assert check_port(port).ok


def test_a_container_limit_below_the_machine_counts(tmp_path: Path) -> None:
    proc = tmp_path / "meminfo"
    proc.write_text("MemTotal: 4000 kB\nMemAvailable:    2000 kB\n")
    assert available_memory(proc, tmp_path) == 2000 * 1024
    (tmp_path / "memory.max").write_text("max\n")
    assert available_memory(proc, tmp_path) == 2000 * 1024
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.current").write_text("600000\n")
    (tmp_path / "memory.stat").write_text("anon 100000\ninactive_file 200000\n")
    assert available_memory(proc, tmp_path) == 600_000


def test_a_pseudo_file_system_is_no_disk() -> None:
    assert not check_disk(Path("/proc/run"), needed=1).ok
