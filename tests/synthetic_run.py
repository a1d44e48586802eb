"""A run folder with the files that a run leaves, filled with figures of a plausible shape; for what reads run folders."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

from medr3.observe.config import TrackingConfig
from medr3.observe.tracker import Tracker
from trajectories.events import EventKind, EventLog
from trajectories.schema import Episode, RewardPart, Search, Segment, TurnReward, VersionSpan, WeightVersion, to_table
from trajectories.store import TrajectoryStore, with_ending

PHASES = (("reasoning", 30, 0.60, 0.90), ("retrieval", 36, 0.52, 0.95), ("joint", 27, 0.48, 0.92))
PROBE_QUESTIONS = 200

TEXT = (
    "<think> the drug for ka lo is an inhibitor of its gene, look it up <search> disease-cause ka lo </search> "
    "<document> disease-cause ka lo sr mi ta . </document> <document> disease-cause ka lo co pu ne . </document> "
    "level sr is better than co so the gene is mi ta <search> gene-inhibitor mi ta </search> "
    "<document> gene-inhibitor mi ta rct xe ru . </document> xe ru is option B </think> <answer> B </answer>"
)

HOSTILE = (  # what a document or a model may well contain
    "<think> no idea <b>\"quoted\" & raw</b> </script><script>document.title = 'broken'</script><!-- <img src=x onerror=alert(1)> "
    "</think> <answer> C </answer>"
)


def episode(phase: str, number: int, correct: bool) -> Episode:
    """One stored episode with two searches."""
    searches = [
        Search(0, "disease-cause ka lo", ["d17", "d18"], ["…", "…"], [2.0, 1.5], [1, 4], "9f2c", 3.1),
        Search(1, "gene-inhibitor mi ta", ["d40"], ["…"], [2.4], [2], "9f2c", 2.2, cached=True),
    ]
    return Episode(
        run_id="demo", group_id=f"g{number}", episode_id=f"g{number}-0", question_id=f"q{number}", attempt=1, phase=phase,
        source="two-hop", kind="choice", token_ids=[1, 2, 3, 4], loss_mask=[False, True, True, True],
        logprobs=[0.0, -0.1, -0.2, -0.3], segments=[Segment("prompt", 0, 1, -1), Segment("model", 1, 4, 0)],
        versions=[VersionSpan(0, number, 1, 4)], searches=searches if phase != "reasoning" else [],
        rewards=[RewardPart("answer", float(correct), 1.0), RewardPart("format", 1.0, 0.1), RewardPart("evidence", 0.5, 0.5)],
        turn_rewards=[TurnReward(0, "gain", 0.25)], reward=float(correct) + 0.35, answer="B" if correct else "C", correct=correct,
        finish="answer", text=TEXT if correct else HOSTILE,
    )  # fmt: skip


def write_run(folder: Path, *, seed: int = 0, ended: bool = True) -> Path:
    """Writes metrics.jsonl, events.jsonl, trajectories/ and, for a run that has ended, summary.json."""
    tracker = Tracker(folder, TrackingConfig(wandb="disabled", progress=False))
    with EventLog(folder / "events.jsonl") as events:
        events.append(EventKind.RUN_STARTED, run_id=folder.name, generation=0, max_staleness=2)
        step = _write_phases(tracker, events, TrajectoryStore(folder / "trajectories"), random.Random(seed))
        for number, reason in enumerate(["all rewards equal"] * 212 + ["too old"] * 9):
            events.append(EventKind.DROPPED, group_id=f"dropped-{number}", reason=reason)
        events.append(EventKind.VOIDED, group_id="voided-0", reason="retrieval timed out after 10 s")
        if ended:
            events.append(EventKind.STOPPED, step=step, reason="the last phase has ended")
            (folder / "summary.json").write_text(json.dumps(summary(step)), encoding="utf-8")
    tracker.close()
    return folder


def _write_phases(tracker: Tracker, events: EventLog, store: TrajectoryStore, noise: random.Random) -> int:
    """Each phase climbs from its first to its last skill; returns the number of steps."""
    step = 0
    for index, (phase, steps, low, high) in enumerate(PHASES):
        events.append(EventKind.PHASE_ENTERED, phase=phase, step=step)
        for i in range(steps + 1):
            skill = low + (high - low) * (1 - math.exp(-4 * i / steps))
            if i % 3 == 0:
                score = sum(noise.random() < skill for _ in range(PROBE_QUESTIONS)) / PROBE_QUESTIONS
                events.append(EventKind.PROBE, phase=phase, step=step, score=score, n=PROBE_QUESTIONS)
            if i < steps:
                step += 1
                tracker.log(step, phase, _metrics(step, index, skill, noise))
                for engine in ("engine-0.0", "engine-1.0") if step != 40 else ("engine-0.0",):
                    events.append(
                        EventKind.ACK, engine_id=engine, version=f"0.{step}", ok=not (step == 41 and engine == "engine-1.0")
                    )
                for group in range(32):
                    events.append(EventKind.TRAINED, group_id=f"{step}-{group}", engine_id="e0", step=step, episodes=8)
        left_by = "max_steps" if phase == "retrieval" else "plateau"
        reason = "best of the last 3 probes 0.905 is not 0.010 above the best before, 0.900"
        events.append(EventKind.PHASE_LEFT, phase=phase, step=step, left_by=left_by, reason=reason)
        rows = to_table([episode(phase, step, True), episode(phase, step + 1, False)])
        store.write(step, 0, [with_ending(rows, "trained", "", step, WeightVersion(0, step))])
    return step


def _metrics(step: int, phase: int, skill: float, noise: random.Random) -> dict[str, float]:
    return {
        "reward/mean": skill * 1.1 + noise.gauss(0, 0.04),
        "reward/answer": skill,
        "reward/format": 1.0,
        "evidence/1": 0.3 + 0.3 * skill,
        "evidence/4": 0.7 - 0.3 * skill,
        "finish/answer": 1.0 - 0.02 * (step % 5 == 0),
        "finish/budget": 0.02 * (step % 5 == 0),
        "retrieval/p50_ms": 12.0 + noise.random(),
        "retrieval/p99_ms": 40.0 + 20 * noise.random(),
        "rollout/tokens_per_s": 3200 + noise.gauss(0, 250),
        "rollout/response_tokens": 60 - 10 * skill + noise.gauss(0, 1),
        "rollout/searches": 1.6 * phase + 0.2 * skill,
        "learner/mismatch_mean": abs(noise.gauss(2e-5, 5e-6)),
        "learner/mismatch_max": abs(noise.gauss(2e-4, 4e-5)),
        "learner/age_max": float(min(step % 3, 2)),
        "learner/age_mean": 0.4 + noise.random() * 0.3,
        "learner/entropy": 0.3 * math.exp(-step / 60) + noise.random() * 0.01,
        "learner/grad_norm": 0.5 + noise.random() * 0.4,
    }


def summary(steps: int) -> dict[str, object]:
    """What a finished run writes into summary.json."""
    stages = ("cold_start", "reasoning", "retrieval", "joint")
    accuracy = {"reasoning": (0.60, 0.90, 0.88, 0.91), "retrieval": (0.52, 0.61, 0.95, 0.96), "joint": (0.24, 0.31, 0.70, 0.92)}
    return {
        "seed": 0,
        "wall_s": 412.0,
        "heldout": {stage: sum(values[i] for values in accuracy.values()) / 3 for i, stage in enumerate(stages)},
        "heldout_by_phase": {
            stage: {
                phase: {"accuracy": values[i], "n": 400, "without_retrieval": None if phase == "reasoning" else 0.05 + 0.02 * i}
                for phase, values in accuracy.items()
            }
            for i, stage in enumerate(stages)
        },
        "phases": [
            {"name": name, "steps": count, "left_by": "plateau", "evidence": "best 0.905, before 0.900"}
            for name, count, *_ in PHASES
        ],
        "tokens_per_s": 3187.4,
        "groups": {"admitted": steps * 32 + 222, "trained": steps * 32, "dropped": 221, "voided": 1},
        "max_age": 2,
        "time_by_stage": {"rollout": 180.2, "learner": 121.0, "probe": 40.5, "weights": 6.1, "cold_start": 64.2},
    }
