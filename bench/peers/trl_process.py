"""TRL in a process and an environment of its own, stepped from here."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from bench.workload import GROUP, LEARNING_RATE
from learner.advantages import token_advantages
from learner.batch import EpisodeBatch
from learner.config import LearnerConfig
from learner.model import Policy

SCRIPT = Path(__file__).parent / "trl_step.py"


class TrlPeer:
    """Its learner step on a batch of ours: same weights, same tokens, same advantages. `folder` is for the files between us."""

    def __init__(self, environment: Path, folder: Path, policy: Policy, batch: EpisodeBatch, config: LearnerConfig) -> None:
        policy.causal_lm.save_pretrained(folder)
        (folder / "episodes.json").write_text(json.dumps(_episodes(batch, config)))
        command = [str(environment / "bin" / "python"), str(SCRIPT), str(folder), str(LEARNING_RATE), str(GROUP)]
        log = (folder / "trl.log").open("w")
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
            env={"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""},
        )  # fmt: skip
        self._log = Path(log.name)
        about = self._answer()
        self.version, self.rows, self.grad_norm = about["version"], about["rows"], about["grad_norm"]

    def step(self) -> float:
        """Seconds of one step, as TRL's process measured them."""
        assert self._process.stdin is not None
        self._process.stdin.write("step\n")
        self._process.stdin.flush()
        return float(self._answer()["seconds"])

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"TRL's process ended: {self._log.read_text().strip().splitlines()[-1]}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._process.communicate()  # closes its input, which ends it


def _episodes(batch: EpisodeBatch, config: LearnerConfig) -> list[dict[str, Any]]:
    """Prompt, completion, which tokens of the completion carry loss, and the advantage, for each episode."""
    advantages_t, episodes = token_advantages(batch, config).advantages_t, []
    for first, end in zip(batch.offsets[:-1], batch.offsets[1:], strict=True):
        chosen = batch.loss_mask_t[first:end]
        start = first + int(np.argmax(chosen))
        episodes.append(
            {
                "prompt": batch.token_ids_t[first:start].tolist(), "completion": batch.token_ids_t[start:end].tolist(),
                "chosen": batch.loss_mask_t[start:end].astype(int).tolist(), "advantage": float(advantages_t[start]),
            }
        )  # fmt: skip
    return episodes
