"""Advisories in the OSV format apply to the versions that they name, and to no others."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from security.advisories import audit, installed_packages

ROOT = Path(__file__).parents[2]
ADVISORY = """
id: PYSEC-2030-1
modified: "2030-05-01T00:00:00Z"
aliases: [CVE-2030-1]
affected:
- package: {name: Some_Package, ecosystem: PyPI}
  ranges:
  - type: GIT
    events: [{introduced: "0"}, {fixed: 0123abcd}]
  - type: ECOSYSTEM
    events: [{introduced: "1.0"}, {fixed: "1.4"}, {introduced: "2.0rc1"}]
  versions: ["0.9.post1"]
"""


@pytest.fixture
def database(tmp_path: Path) -> Path:
    folder = tmp_path / "vulns" / "some-package"
    folder.mkdir(parents=True)
    (folder / "PYSEC-2030-1.yaml").write_text(ADVISORY)
    (folder / "PYSEC-2030-2.yaml").write_text(ADVISORY.replace("2030-1", "2030-2") + "withdrawn: 2030-06-01\n")
    return tmp_path


@pytest.mark.parametrize(
    ("version", "fixed"),
    [("0.9", None), ("0.9.post1", "1.4"), ("1.0", "1.4"), ("1.3.9", "1.4"), ("1.4", None), ("2.0rc1", ""), ("2.1+cpu", "")],
)
def test_which_versions_an_advisory_means(version: str, fixed: str | None, database: Path) -> None:
    found = audit(database, {"some.package": version, "other": "1.0"})
    assert [finding.fixed for finding in found.findings] == ([] if fixed is None else [fixed])
    assert (found.packages, found.advisories, found.newest) == (2, 2, "2030-05-01")
    assert all("PYSEC-2030-1, CVE-2030-1" in str(finding) for finding in found.findings)


def test_a_folder_without_advisories_is_no_clean_bill(tmp_path: Path) -> None:
    (tmp_path / "vulns" / "some-package").mkdir(parents=True)
    with pytest.raises(ValueError, match="holds no advisories"):
        audit(tmp_path, {"some-package": "1.0"})
    done = subprocess.run(
        [sys.executable, "-m", "security.advisories", str(tmp_path)], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1


def test_an_installed_package_that_is_affected_fails_the_audit(database: Path) -> None:
    installed = installed_packages()
    folder = database / "vulns" / "pytest"
    folder.mkdir()
    (folder / "PYSEC-2030-3.yaml").write_text(
        ADVISORY.replace("Some_Package", "pytest").replace('introduced: "1.0"', 'introduced: "0"').replace('"1.4"', '"999"')
    )
    done = subprocess.run(
        [sys.executable, "-m", "security.advisories", str(database)], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 1
    assert done.stdout.splitlines()[0] == f"pytest {installed['pytest']}: PYSEC-2030-1, CVE-2030-1: update to 999"
