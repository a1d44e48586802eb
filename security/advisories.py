"""Installed packages held against known vulnerabilities, without a network: `python -m security.advisories FOLDER`.

FOLDER holds advisories in the OSV format as YAML or JSON files, in a folder per package, as PyPA's advisory database has them.
Exit codes: 0 none applies, 1 some do, 2 the folder holds no advisories.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

ENDINGS = (".yaml", ".yml", ".json")
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # JSON is YAML


class Finding(NamedTuple):
    """An advisory that applies to an installed package."""

    package: str
    version: str
    advisory: str
    fixed: str  # the lowest version above that is said to be sound; empty: none is known

    def __str__(self) -> str:
        mend = f"update to {self.fixed}" if self.fixed else "no sound version is known"
        return f"{self.package} {self.version}: {self.advisory}: {mend}"


class Audit(NamedTuple):
    """What an audit found, and what it rests on."""

    findings: list[Finding]
    packages: int  # that are installed
    advisories: int  # that are about them
    newest: str  # the last change of any of these


def audit(folder: Path, installed: dict[str, str]) -> Audit:
    """Holds packages, by name, against the advisories in a folder; a ValueError where it holds none for any package."""
    folders = {canonicalize_name(path.name): path for path in sorted((*folder.glob("*/"), *folder.glob("vulns/*/")))}
    if not any(any(each.glob(f"*{ending}")) for each in folders.values() for ending in ENDINGS):
        raise ValueError(f"{folder}: holds no advisories: name a checkout of PyPA's advisory database")
    findings, count, newest = [], 0, ""
    for name, version in sorted(installed.items()):
        for advisory in _advisories(folders.get(canonicalize_name(name))):
            count, newest = count + 1, max(newest, str(advisory.get("modified", ""))[:10])
            if not advisory.get("withdrawn") and (fixed := _applies(advisory, name, Version(version))) is not None:
                aliases = ", ".join([str(advisory["id"]), *advisory.get("aliases", [])])
                findings.append(Finding(name, version, aliases, fixed))
    return Audit(findings, len(installed), count, newest)


def installed_packages() -> dict[str, str]:
    """Versions of all that is installed here, by name; what has no version that can be compared is left out."""
    found: dict[str, str] = {}
    for distribution in metadata.distributions():
        try:
            found[canonicalize_name(distribution.metadata["Name"])] = str(Version(distribution.version))
        except (InvalidVersion, TypeError, KeyError):
            continue
    return found


def _advisories(folder: Path | None) -> Iterator[dict[str, Any]]:
    for path in sorted(folder.iterdir()) if folder else ():
        if path.suffix in ENDINGS:
            yield yaml.load(path.read_text(encoding="utf-8"), _LOADER)  # noqa: S506 (a safe loader, the fast one)


def _applies(advisory: dict[str, Any], name: str, version: Version) -> str | None:
    """The version that mends it, or an empty text, where a version is affected; None where it is not."""
    for affected in advisory.get("affected", []):
        if canonicalize_name(affected["package"]["name"]) != canonicalize_name(name):
            continue
        ranges = [found["events"] for found in affected.get("ranges", []) if found.get("type") == "ECOSYSTEM"]
        fixes = [fixed for events in ranges for event in events if (fixed := _version(event.get("fixed"))) and fixed > version]
        if version in {_version(each) for each in affected.get("versions", [])} or any(
            _within(each, version) for each in ranges
        ):
            return str(min(fixes)) if fixes else ""
    return None


def _within(events: list[dict[str, Any]], version: Version) -> bool:
    """Events in order: introduced opens an interval, fixed ends it before its version, last_affected behind it.

    Example:
        >>> events = [{"introduced": "0"}, {"fixed": "1.2"}, {"introduced": "2.0"}]
        >>> [_within(events, Version(each)) for each in ("1.1", "1.2", "2.0.1")]
        [True, False, True]
    """
    inside = False
    for event in events:
        if "introduced" in event:
            start = _version(event["introduced"])
            inside = inside or str(event["introduced"]) == "0" or (start is not None and version >= start)
            continue
        fixed, last = _version(event.get("fixed")), _version(event.get("last_affected"))
        if (fixed is not None and version >= fixed) or (last is not None and version > last):
            inside = False
    return inside


def _version(text: Any) -> Version | None:
    try:
        return None if text is None else Version(str(text))
    except InvalidVersion:
        return None


def main() -> None:
    try:
        found = audit(Path(sys.argv[1]), installed_packages())
    except (OSError, ValueError) as error:
        print(f"audit: {error}", file=sys.stderr)
        sys.exit(2)
    for finding in found.findings:
        print(finding)
    said = f"the newest of {found.newest}" if found.newest else "none of them dated"
    print(
        f"audit: {len(found.findings)} advisories apply to {found.packages} installed packages; {found.advisories} are about them,"
        f" {said}"
    )
    sys.exit(1 if found.findings else 0)


if __name__ == "__main__":
    main()
