"""What a suite found, as a page for people and as JSON: every fault, how long the run took to recover, every invariant."""

from __future__ import annotations

import os
import platform
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from medr3.chaos.breaking import BREAKAGES
from medr3.chaos.evidence import Evidence, ordinary_cycle_s
from medr3.chaos.faults import KINDS
from medr3.chaos.invariants import INVARIANTS, check
from medr3.run.manifest import write_json

RECORD, PAGE = "record.json", "record.md"
SHOWN = 20  # violations of one invariant in one run; the rest is counted


@dataclass
class Record:
    """Grows run by run; `write` leaves it in the suite's folder."""

    plan: Path
    seed: int
    out: Path
    runs: list[dict[str, Any]] = field(default_factory=list)
    violations: dict[str, list[str]] = field(default_factory=dict)  # by invariant
    _recovered: list[tuple[str, float]] = field(default_factory=list)  # kind, seconds
    _ordinary: list[float] = field(default_factory=list)
    _began: float = field(default_factory=time.time)

    def add(self, evidence: Evidence) -> list[str]:
        """Checks a run; returns what there is to say of it."""
        found = check(evidence)
        for name, lines in found.items():
            if lines:
                self.violations.setdefault(name, []).extend(f"{evidence.name}: {line}" for line in lines)
        self._recovered += [(fault.kind, fault.recovered_s) for fault in evidence.faults if fault.recovered_s is not None]
        if evidence.twin is None:
            self._ordinary = ordinary_cycle_s(evidence.events)
        self.runs.append(_facts(evidence, found))
        counted = evidence.audit
        told = (
            f"  {evidence.name}: {len(evidence.faults)} faults, {len(evidence.lives)} drivers; {counted.admitted:,} groups:"
            f" {counted.trained:,} trained, {counted.dropped:,} dropped, {counted.voided:,} voided, {len(counted.open):,} open;"
            f" {sum(map(len, found.values()))} violations"
        )
        return [told, *(f"  violated: {name}: {line}" for name, lines in found.items() for line in lines[:SHOWN])]

    def write(self) -> str:
        """Both files; returns the closing words."""
        seconds = [each for _, each in self._recovered]
        recovery = _percentiles(seconds)
        told: dict[str, Any] = {
            "plan": str(self.plan), "seed": self.seed, "wall_s": round(time.time() - self._began, 1),
            "machine": f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}",
            "faults": sum(len(run["faults"]) for run in self.runs), "kinds": dict(Counter(kind for kind, _ in self._kinds())),
            "recovery_s": recovery, "ordinary_cycle_s": _percentiles(self._ordinary),
            "violations": self.violations, "runs": self.runs,
        }  # fmt: skip
        write_json(self.out / RECORD, told)
        page = _page(told, self._recovered)
        (self.out / PAGE).write_text(page, encoding="utf-8")
        took = f"recovery p50 {recovery['p50']:.1f} s, p95 {recovery['p95']:.1f} s" if seconds else "no recovery was measured"
        broken = f"{sum(map(len, self.violations.values()))} violations" if self.violations else "every invariant held"
        return f"{told['faults']} faults in {len(self.runs)} runs: {broken}; {took}; record: {self.out / PAGE}"

    def _kinds(self) -> list[tuple[str, float]]:
        return [(fault["kind"], fault["at"]) for run in self.runs for fault in run["faults"]]


def _facts(evidence: Evidence, found: dict[str, list[str]]) -> dict[str, Any]:
    counted = evidence.audit
    return {
        "name": evidence.name,
        "planned": evidence.planned,
        "faults": [asdict(fault) for fault in evidence.faults],
        "lives": [asdict(life) for life in evidence.lives],
        "groups": {
            "admitted": counted.admitted, "trained": counted.trained, "dropped": counted.dropped, "voided": counted.voided,
            "open": len(counted.open), "taken_back": counted.rolled_back,
        },
        "oldest_sample": counted.max_age,
        "versions": counted.published,
        "held_out": evidence.heldout,
        "invariants": {name: len(lines) for name, lines in found.items()},
    }  # fmt: skip


def _percentiles(seconds: list[float]) -> dict[str, float]:
    if not seconds:
        return {}
    p50, p95 = np.percentile(seconds, [50, 95])
    return {"n": len(seconds), "p50": round(float(p50), 1), "p95": round(float(p95), 1), "max": round(max(seconds), 1)}


def _page(told: dict[str, Any], recovered: list[tuple[str, float]]) -> str:
    what = (
        f"{told['faults']} faults in {len(told['runs'])} runs (the first is the undisturbed twin), {told['wall_s'] / 60:.1f} minutes on"
        f" {told['machine']}. Recovery, from the fault until a group that was admitted after it had been trained:"
        f" {_in_words(told['recovery_s'])}. The same figure of an undisturbed step: {_in_words(told['ordinary_cycle_s'])}."
    )
    lines = [f"# Chaos: `{told['plan']}`, seed {told['seed']}", "", what, ""]
    lines += ["| fault | times | recovery p50, s | longest, s | what must happen |", "|---|---|---|---|---|"]
    for kind, times in sorted(told["kinds"].items()):
        took = _percentiles([seconds for name, seconds in recovered if name == kind])
        lines.append(f"| {kind} | {times} | {took.get('p50', '–')} | {took.get('max', '–')} | {KINDS[kind].must} |")
    lines += ["", f"| run | {' | '.join(INVARIANTS)} |", f"|---|{'---|' * len(INVARIANTS)}"]
    for run in told["runs"]:
        held = " | ".join("held" if not run["invariants"][name] else f"**{run['invariants'][name]}**" for name in INVARIANTS)
        lines.append(f"| {run['name']} | {held} |")
    lines += [
        "",
        "| run | drivers | admitted | trained | dropped | voided | open | taken back | oldest sample |",
        f"|{'---|' * 9}",
    ]
    for run in told["runs"]:
        groups = " | ".join(str(number) for number in run["groups"].values())
        lines.append(f"| {run['name']} | {len(run['lives'])} | {groups} | {run['oldest_sample']} |")
    if told["violations"]:
        lines += ["", "## Violations", ""]
        lines += [f"- {name}: {line}" for name, found in told["violations"].items() for line in found[:SHOWN]]
    return "\n".join([*lines, "", *_done(told["runs"]), ""])


def _done(runs: list[dict[str, Any]]) -> list[str]:
    lines = ["| run | # | fault | done to | the driver ended | recovered after, s |", "|---|---|---|---|---|---|"]
    for run in runs:
        for fault in run["faults"]:
            took = "–" if fault["recovered_s"] is None else f"{fault['recovered_s']:.1f}"
            ended = "yes" if fault["driver_ended"] else "no"
            lines.append(f"| {run['name']} | {fault['number']} | {fault['kind']} | {fault['target']} | {ended} | {took} |")
    return lines


def _in_words(took: dict[str, float]) -> str:
    return f"p50 {took['p50']} s, p95 {took['p95']} s, longest {took['max']} s of {took['n']}" if took else "not measured"


def listing() -> str:
    """What can be done, what must hold, and what can be broken on purpose."""
    faults = [
        f"{kind.name}{' (needs ' + kind.needs + ')' if kind.needs else ''}: {kind.does}; {kind.must}" for kind in KINDS.values()
    ]
    invariants = [f"{name}: {_first(holds.__doc__)}" for name, holds in INVARIANTS.items()]
    broken = [f"{name}: {_first(breaks.__doc__)}" for name, breaks in BREAKAGES.items()]
    parts = {"faults": faults, "invariants": invariants, "to break with --broken": broken}
    return "\n\n".join(f"{title}:\n" + "\n".join(f"  {line}" for line in lines) for title, lines in parts.items())


def _first(text: str | None) -> str:
    return " ".join((text or "").split())
