"""Configurations, overrides, plans, recipes and words of the command line, as people write them."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from medr3.chaos.faults import KINDS
from medr3.chaos.plan import read_plan, schedule
from medr3.cli_common import load_config
from medr3.cli_data import _length_mixture
from medr3.config import RunConfig
from medr3.errors import UserError
from medr3.evaluation.ablation import read_arms
from medr3.evaluation.settings import numbers
from medr3.observe.explaining import explain, named_recipe, read_episode
from medr3.observe.following import Revision
from medr3.ops.control import _number
from medr3.ops.local import find_run
from rewards.recipes import shipped
from rewards.specimens import ordinary
from tasks.questions import without_length
from tasks.reading import Dataset
from tests.fuzz.mutation import changed_text, changed_value, of_json, of_text, text, value
from tests.fuzz.places import written
from tests.fuzz.target import Broken, Target, text_of
from tests.fuzz.targets_text import _episodes
from trajectories.schema import WeightVersion

CONFIGS = Path(__file__).parents[2] / "configs"
DEMO = CONFIGS / "demo.yaml"
REFUSED = (UserError,)


def targets() -> list[Target]:
    return [
        Target("configuration: YAML", _configs, _config, _yaml_changed, REFUSED, share=0.05, many_lines=True),
        Target("configuration: every setting", _resolved, _config, of_json, REFUSED, share=0.05, many_lines=True),
        Target(
            "configuration: overrides",
            _overrides,
            _overridden,
            _override_changed,
            REFUSED,
            0.1,
            many_lines=True,
            samples_refused=True,
        ),
        Target("plans of ablations", _arms, _read_arms, _yaml_changed, REFUSED, share=0.05),
        Target("plans of chaos", _plans, _plan, _yaml_changed, REFUSED, share=0.3),
        Target("recipes of rewards", _recipes, _recipe, _yaml_changed, REFUSED, share=0.05),
        Target("episodes to explain", _rows, _explained, of_json, REFUSED, share=0.3),
        Target(
            "words: versions",
            partial(_words, "1.0", "0.117", "-1.2"),
            _on_text(WeightVersion.parse),
            of_text,
            (ValueError,),
            share=3,
        ),
        Target("words: revisions", partial(_words, "a1.117.3"), _on_text(Revision.parse), of_text, share=3),
        Target(
            "words: names of questions",
            partial(_words, "world/joint/train-0/7@at_most-200", "q@exact-1"),
            _on_text(without_length),
            of_text,
            share=3,
        ),
        Target(
            "words: data sets",
            partial(_words, "mirage:data/benchmark.json", "data/medqa@train"),
            _on_text(Dataset.parse),
            of_text,
            REFUSED,
            share=1,
        ),
        Target("words: numbers", partial(_words, "1,3", "10"), _numbers, of_text, REFUSED, many_lines=True, share=3),
        Target(
            "words: lengths",
            partial(_words, "exact=1,at_most=1,free=2 100-4000"),
            _lengths,
            of_text,
            REFUSED,
            many_lines=True,
            share=1,
        ),
        Target(
            "words: names of runs",
            partial(_words, "demo", "runs/demo", "a/../b"),
            _on_text(find_run),
            of_text,
            REFUSED,
            many_lines=True,
            samples_refused=True,
        ),
    ]


def _plans() -> list[bytes]:
    return [path.read_bytes() for path in sorted((CONFIGS / "chaos").glob("*.yaml")) if "runs:" in path.read_text()]


def _plan(case: bytes) -> None:
    """Everything that is drawn of a plan before a process is started: it must be a schedule that clocks can keep to."""
    plan = read_plan(written(case, "plans", "plan.yaml"), KINDS)
    for run in plan.runs:
        for fault in schedule(run, seed=3):
            if not 0 <= fault.delay_s < float("inf") or (fault.seconds is not None and not 0 < fault.seconds < float("inf")):
                raise Broken(f"a fault after {fault.delay_s} s, for {fault.seconds} s")


def _on_text(read: Callable[[str], object]) -> Callable[[bytes], object]:
    return lambda case: read(text_of(case))


def _words(*words: str) -> list[bytes]:
    return [word.encode() for word in words]


def _numbers(case: bytes) -> None:
    said = text_of(case)
    numbers("--top-k", said, 1, 100)
    _number(said.partition(",")[0])


def _lengths(case: bytes) -> None:
    shares, _, tokens = text_of(case).rpartition(" ")
    _length_mixture(shares, tokens)


def _configs() -> list[bytes]:
    paths = [DEMO, *sorted((CONFIGS / "recipes").glob("*.yaml"))]
    return [path.read_bytes() for path in paths]


def _resolved() -> list[bytes]:
    whole = load_config(DEMO, []).model_dump(mode="json")
    more = load_config(CONFIGS / "recipes" / "r3_rag.yaml", []).model_dump(mode="json")
    return [json.dumps(each).encode() for each in (whole, more)]


def _config(case: bytes) -> None:
    config = load_config(_beside_recipes(case), [])
    RunConfig.model_validate(config.model_dump(mode="json"))
    yaml.safe_dump(config.model_dump(mode="json"), allow_unicode=True)


def _beside_recipes(case: bytes) -> Path:
    """Where a `base` beside the file is found."""
    for path in (CONFIGS / "recipes").glob("*.yaml"):
        if not (copy := written(b"", "configs", "x").parent / path.name).exists():
            copy.write_bytes(path.read_bytes())
    return written(case, "configs", "case.yaml")


def _yaml_changed(rng: random.Random, sample: bytes, samples: list[bytes]) -> bytes:
    """Its values as a tree, or its text as such."""
    if rng.random() < 0.5:
        return of_text(rng, sample, samples)
    tree = changed_value(rng, yaml.safe_load(sample), [])
    try:
        if rng.random() < 0.5:
            return yaml.safe_dump(tree, allow_unicode=True).encode("utf-8", "surrogatepass")
    except (yaml.YAMLError, RecursionError, ValueError):
        pass
    try:
        return json.dumps(tree).encode()
    except (RecursionError, TypeError):
        return b"[" * 5_000


def _overrides() -> list[bytes]:
    said = [
        ["rollout.num_engines=4", "run.seed=1"],
        ["curriculum=med_r3", "curriculum.phases.0.name=x"],
        ["curriculum.phases.joint.max_steps=3", "curriculum.phases.joint.mixture={world/joint: 1}"],
        ["rollout.max_staleness=1", "budget.tools=[read]", "rollout.tools.read={kind: read}"],
        ["learner.algorithm=grpo", "rollout.group_size=1", "rewards.mine={terms: [{reward: correct}]}"],
    ]
    return [json.dumps(each).encode() for each in said]


def _paths(tree: Any, above: str = "") -> list[str]:
    if not isinstance(tree, dict):
        return [above]
    return [above, *(path for name, each in tree.items() for path in _paths(each, f"{above}.{name}" if above else name))]


def _override_changed(rng: random.Random, sample: bytes, samples: list[bytes]) -> bytes:
    """Any setting gets any value, or an override loses its form."""
    said = json.loads(sample)
    for _ in range(rng.randint(1, 2)):
        kind = rng.random()
        if kind < 0.5:
            said.append(f"{rng.choice(_paths(_known()))}={_as_yaml(rng)}")
        elif kind < 0.8:
            at = rng.randrange(len(said))
            said[at] = changed_text(rng, said[at])
        else:
            said.append(f"{text(rng)}={text(rng)}")
    return json.dumps(said).encode()


def _as_yaml(rng: random.Random) -> str:
    if rng.random() < 0.4:
        return text(rng)
    try:
        return json.dumps(value(rng))
    except RecursionError:
        return "[" * 3_000


def _known() -> Any:
    return json.loads(_resolved_once())


def _resolved_once(kept: list[bytes] = []) -> bytes:  # noqa: B006 (kept from case to case)
    if not kept:
        kept.append(_resolved()[0])
    return kept[0]


def _overridden(case: bytes) -> None:
    try:
        said = json.loads(case)
    except (ValueError, RecursionError):
        return
    if isinstance(said, list) and all(isinstance(each, str) for each in said):
        load_config(DEMO, said)


def _arms() -> list[bytes]:
    return [(CONFIGS / "ablations" / "demo.yaml").read_bytes()]


def _read_arms(case: bytes) -> None:
    for arm in read_arms(DEMO, written(case, "arms", "arms.yaml"), []):
        if not isinstance(arm.folder, str):
            raise Broken("an arm without a folder")


def _recipes() -> list[bytes]:
    return [path.read_bytes() for path in sorted((CONFIGS / "rewards").glob("*.yaml"))]


def _recipe(case: bytes) -> None:
    path = written(case, "recipes", "recipe.yaml")
    try:
        phases = shipped(path.parent)
    except ValueError as refused:  # as `rewards list` would have it
        raise UserError(str(refused)) from None
    for name in phases:
        _, recipe = named_recipe(str(path), name.partition("/")[2])
        specimen = ordinary()[0]
        if not any(term.is_own for term in recipe.all_terms):
            explain(specimen.question, specimen.episode, "mine", recipe)


def _rows() -> list[bytes]:
    """An episode as `rewards explain` takes it."""
    rows = [json.loads(sample) for sample in _episodes()[:12]]
    rest = {
        "run_id": "r", "group_id": "g", "episode_id": "e", "question_id": "q", "attempt": 0, "phase": "p", "source": "s", "kind": "text",
        "token_ids": [], "loss_mask": [], "logprobs": [], "segments": [], "versions": [],
    }  # fmt: skip
    return [json.dumps({**rest, **row}).encode() for row in rows]


def _explained(case: bytes) -> None:
    question, episode = read_episode(written(case, "EPISODE.json"), None)
    _, recipe = named_recipe("med_r3", "retrieval")
    explanation = explain(question, episode, "med_r3/retrieval", recipe)
    str(explanation).encode()
    json.dumps(explanation.as_dict())
