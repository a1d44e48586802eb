"""Cold start: a tiny model learns to copy (drills), then to imitate the teacher, behind gates on skills rather than on steps.

Everything is measured on a held-out world that neither the plateau decisions nor the reported figures use.
"""

from __future__ import annotations

import json
import random
import shutil
import time
from collections.abc import Generator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.config import ColdStartConfig
from tasks.skills import DRILL_SKILLS, IMITATION_SKILLS, classify
from tasks.teacher import Demonstration, SearchFunction, demonstrate, drill
from tasks.tiny_model import make_model, save
from tasks.vocabulary import build_tokenizer
from tasks.world import SOURCES, Universe

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerFast, Qwen2ForCausalLM

PROBE_EVERY = 50  # steps between two probes of the gates
PROBE_SIZE = 128
STALLED_PROBES = 8  # without a gain: a start that matches evidence levels instead of entities stays there
GAIN = 0.01
DECAY_SHARE = 0.25  # the learning rate falls to zero over the last quarter
DEMONSTRATION_OFFSET = 1_000_000  # question indices of the teacher: far from those that reinforcement learning asks
IGNORED = -100  # cross-entropy's own mark for a token without loss


class ColdStartStalled(Exception):
    """No attempt passed its gates in time."""


@dataclass
class ColdStartReport:
    """How the start went, for the run folder."""

    attempt: int
    steps: int
    seconds: float
    drill_accuracy: float
    imitation_accuracy: float
    history: list[dict[str, float]] = field(default_factory=list)


@dataclass(frozen=True)
class _Batch:
    ids: torch.Tensor  # [batch, length]
    labels: torch.Tensor  # the same, IGNORED where the model did not write


def encode(demonstration: Demonstration, tokenizer: PreTrainedTokenizerFast) -> tuple[list[int], list[int]]:
    """Token ids and labels of one demonstration; every piece is encoded by itself, as the rollout does it."""
    message = [{"role": "user", "content": demonstration.prompt}]
    ids = list(tokenizer.apply_chat_template(message, add_generation_prompt=True, tokenize=True, return_dict=False))
    labels = [IGNORED] * len(ids)
    for text, own in demonstration.pieces:
        piece = tokenizer.encode(text, add_special_tokens=False)
        ids += piece
        labels += piece if own else [IGNORED] * len(piece)
    return ids, labels


def _collate(rows: list[tuple[list[int], list[int]]], padding: int) -> _Batch:
    import torch

    length = max(len(ids) for ids, _ in rows)
    return _Batch(
        torch.tensor([ids + [padding] * (length - len(ids)) for ids, _ in rows]),
        torch.tensor([labels + [IGNORED] * (length - len(labels)) for _, labels in rows]),
    )


def _skills(row: tuple[list[int], list[int]], tokenizer: PreTrainedTokenizerFast) -> list[str | None]:
    """The skill that every token of an encoded demonstration tests; None for those that the model does not write."""
    ids, labels = row
    own = [i for i, label in enumerate(labels) if label != IGNORED]
    skills: list[str | None] = [None] * len(ids)
    for i, skill in zip(own, classify(tokenizer.convert_ids_to_tokens([ids[i] for i in own])), strict=True):
        skills[i] = skill
    return skills


@dataclass(frozen=True)
class _Probe:
    """Held-out texts with the skill of every token, for teacher-forced accuracy per skill."""

    batch: _Batch
    skills: list[list[str | None]]  # aligned with batch.ids

    @classmethod
    def build(cls, demonstrations: list[Demonstration], tokenizer: PreTrainedTokenizerFast) -> _Probe:
        rows = [encode(demonstration, tokenizer) for demonstration in demonstrations]
        return cls(_collate(rows, tokenizer.pad_token_id), [_skills(row, tokenizer) for row in rows])

    def accuracy(self, model: Qwen2ForCausalLM) -> dict[str, float]:
        """Share of right next tokens, per skill."""
        import torch

        with torch.no_grad():
            guesses = model(self.batch.ids).logits[:, :-1].argmax(-1)
        right = (guesses == self.batch.ids[:, 1:]).tolist()
        totals: dict[str, list[bool]] = {}
        for row, skills in zip(right, self.skills, strict=True):
            for position, skill in enumerate(skills):
                if skill is not None:
                    totals.setdefault(skill, []).append(row[position - 1])
        return {skill: sum(hits) / len(hits) for skill, hits in sorted(totals.items())}


class _Curriculum:
    """The endless stream of training rows of one attempt: drills first, then demonstrations with a share of drills."""

    def __init__(
        self, universe: Universe, config: ColdStartConfig, tokenizer: PreTrainedTokenizerFast, search: SearchFunction, seed: str
    ) -> None:
        self._universe, self._config, self._tokenizer, self._search = universe, config, tokenizer, search
        self._rng = random.Random(seed)
        self._sources = list(SOURCES)
        self._encoded: dict[int, tuple[list[int], list[int]]] = {}

    def drills(self, count: int) -> list[tuple[list[int], list[int]]]:
        return [
            self._certain(encode(drill(self._rng.choice(self._universe.training), self._rng), self._tokenizer))
            for _ in range(count)
        ]

    def _certain(self, row: tuple[list[int], list[int]]) -> tuple[list[int], list[int]]:
        """Loss only where recall decides: which line comes next is chance, and its gradient would be noise."""
        skills = _skills(row, self._tokenizer)
        return row[0], [IGNORED if skill is None else label for label, skill in zip(row[1], skills, strict=True)]

    def mixed(self, count: int) -> list[tuple[list[int], list[int]]]:
        drills = sum(self._rng.random() < self._config.drill_share for _ in range(count))
        return self.drills(drills) + [self._demonstration() for _ in range(count - drills)]

    def _demonstration(self) -> tuple[list[int], list[int]]:
        number = self._rng.randrange(self._config.demonstrations)
        if number not in self._encoded:  # a demonstration is written once, whenever it is first drawn
            world = self._universe.training[number % len(self._universe.training)]
            question = world.question(self._sources[number % len(self._sources)], DEMONSTRATION_OFFSET + number)
            episode = demonstrate(world, question, random.Random(f"teacher/{number}"), self._search)
            self._encoded[number] = encode(episode, self._tokenizer)
        return self._encoded[number]


def held_out_probes(universe: Universe, tokenizer: PreTrainedTokenizerFast, search: SearchFunction) -> tuple[_Probe, _Probe]:
    """(drills, demonstrations) of the world that is kept for the gates."""
    world, rng = universe.held_out["gate"], random.Random("gate")
    drills = [drill(world, rng) for _ in range(PROBE_SIZE)]
    episodes = [
        demonstrate(world, world.question(source, i), rng, search)
        for source in SOURCES
        for i in range(PROBE_SIZE // len(SOURCES))
    ]
    return _Probe.build(drills, tokenizer), _Probe.build(episodes, tokenizer)


class _Optimizer:
    """Muon on the matrices of the layers, AdamW on the rest; one worker only, since Muon is not shard-invariant."""

    def __init__(self, model: Qwen2ForCausalLM, config: ColdStartConfig) -> None:
        import torch

        matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
        chosen = {id(p) for p in matrices}
        rest = [p for p in model.parameters() if id(p) not in chosen]
        self._model = model
        self._parts = [
            (torch.optim.Muon(matrices, lr=config.muon_learning_rate, weight_decay=0.0), config.muon_learning_rate),
            (
                torch.optim.AdamW(rest, lr=config.adamw_learning_rate, betas=(0.9, 0.95), weight_decay=0.0),
                config.adamw_learning_rate,
            ),
        ]

    def step(self, scale: float) -> None:
        """One update at `scale` times the configured learning rates."""
        import torch

        torch.nn.utils.clip_grad_norm_(self._model.parameters(), 1.0)
        for optimizer, rate in self._parts:
            for group in optimizer.param_groups:
                group["lr"] = rate * scale
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)


def _train_step(model: Qwen2ForCausalLM, optimizer: _Optimizer, batch: _Batch, scale: float) -> float:
    import torch

    with torch.autocast("cpu", dtype=torch.bfloat16):  # 1.3–1.7 times faster; reinforcement learning itself stays in fp32
        hidden = model.model(batch.ids).last_hidden_state[:, :-1]
        labels = batch.labels[:, 1:]
        counted = labels != IGNORED
        logits = model.lm_head(hidden[counted])  # the vocabulary only where there is loss
    loss = torch.nn.functional.cross_entropy(logits.float(), labels[counted])
    loss.backward()
    optimizer.step(scale)
    return float(loss.detach())


def _attempt(
    number: int, universe: Universe, config: ColdStartConfig, search: SearchFunction, seed: int
) -> Generator[str, None, tuple[Qwen2ForCausalLM, ColdStartReport] | None]:
    """One data order; yields progress lines; returns None where a gate was not passed in time."""
    tokenizer = build_tokenizer()
    model = make_model(config, seed=1000 * seed + number)
    model.set_attn_implementation("eager")  # on a CPU a step takes a third less than with the fused kernel
    optimizer = _Optimizer(model, config)
    stream = _Curriculum(universe, config, tokenizer, search, f"{seed}/{number}")
    drill_probe, imitation_probe = held_out_probes(universe, tokenizer, search)
    started, step, history = time.monotonic(), 0, []

    def probe(stage: str, loss: float) -> str:
        drills, imitation = drill_probe.accuracy(model), imitation_probe.accuracy(model)
        weakest = min(DRILL_SKILLS, key=lambda skill: drills[skill])
        entry = {
            "step": step, "seconds": time.monotonic() - started, "loss": loss, "drills": drills[weakest],
            "imitation": min(imitation[skill] for skill in IMITATION_SKILLS),
        }  # fmt: skip
        history.append(entry)
        return (
            f"cold start: {stage}, step {step}, {entry['seconds']:.0f} s, loss {loss:.2f}, drills {entry['drills']:.2f}"
            f" (weakest: {weakest}), imitation {entry['imitation']:.2f}"
        )

    def stalled() -> bool:
        drills = [entry["drills"] for entry in history]
        before, recent = drills[:-STALLED_PROBES], drills[-STALLED_PROBES:]
        return bool(before) and max(recent) < max(before) + GAIN

    while True:  # recall drills until every skill is there
        step += 1
        loss = _train_step(
            model,
            optimizer,
            _collate(stream.drills(config.batch_size), tokenizer.pad_token_id),
            min(1.0, step / config.warmup_steps),
        )
        if step % PROBE_EVERY == 0:
            yield probe("drills", loss)
            if history[-1]["drills"] >= config.drill_gate:
                break
            if stalled() or step >= config.max_steps:
                return None
    imitation_started, passed_in_a_row = step, 0
    while True:  # imitation until its gate holds twice in a row
        step += 1
        loss = _train_step(model, optimizer, _collate(stream.mixed(config.batch_size), tokenizer.pad_token_id), 1.0)
        if step % PROBE_EVERY == 0:
            yield probe("imitation", loss)
            passed = history[-1]["drills"] >= config.drills_kept_gate and history[-1]["imitation"] >= config.imitation_gate
            passed_in_a_row = passed_in_a_row + 1 if passed else 0
            if passed_in_a_row >= 2 and step - imitation_started >= config.imitation_steps:
                break
            if step >= config.max_steps:
                return None
    decay = round((step - imitation_started) * DECAY_SHARE / (1 - DECAY_SHARE))
    for i in range(decay):
        step += 1
        loss = _train_step(model, optimizer, _collate(stream.mixed(config.batch_size), tokenizer.pad_token_id), 1.0 - i / decay)
    yield probe("decay", loss)
    last = history[-1]
    return model, ColdStartReport(number, step, last["seconds"], last["drills"], last["imitation"], history)


def cold_start(
    universe: Universe, config: ColdStartConfig, search: SearchFunction, seed: int, folder: Path
) -> Generator[str, None, ColdStartReport]:
    """Trains until the gates hold and writes a Hugging Face folder with `cold_start.json` in it; a stalled start is restarted.

    A generator of progress lines, so that whoever runs it, in whatever process, can show them as they come.
    """
    for number in range(config.attempts):
        result = yield from _attempt(number, universe, config, search, seed)
        if result is not None:
            model, report = result
            unfinished = folder.with_name(folder.name + ".unfinished")
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir(parents=True)
            save(model, unfinished)
            (unfinished / "cold_start.json").write_text(json.dumps(asdict(report), indent=1))
            unfinished.rename(folder)
            return report
        yield f"cold start: attempt {number} stalled, restarting with another data order"
    raise ColdStartStalled(f"the cold start stalled {config.attempts} times; raise cold_start.max_steps or change the seed")
