"""Questions by the thousand, each checked before it is kept, in an order that a restart goes on with.

::

    slot i: specialty i mod n ─▶ rare seed ─▶ sampler ─▶ draft ─▶ words ─▶ asked before? ▶ oracle? ▶ string match? ▶ too easy? ─▶ kept
              ▲                                                                  └──────────┴──── yes / no ─────────┴──┐
              └──────────────────────────── next attempt, from a generator of its own ◀────────────────────────────────┘

What a slot becomes depends on the seed, its number and what was kept before it, so a run that was killed and goes on writes the very
same file as one that was not.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from medr3.errors import UserError
from medr3.json_file import ANEW, as_written, read_object
from medr3.synthesis.gate import TOO_EASY, Solver
from medr3.synthesis.material import Material
from medr3.synthesis.writers import TemplateWriter, Writer
from tasks.graph.oracle import is_in_question, solve
from tasks.graph.questions import QuestionMaker
from tasks.graph.sampling import SAMPLERS, Bounds
from tasks.questions import Question

SLOTS_AT_ONCE = 64  # questions that are tried together, so that a solver's engines are busy
ATTEMPTS = 20  # at one slot: where so many fail, the graph has no more such questions
HOPS = Bounds(3, 5)
QUESTIONS, REJECTED, STATE = "questions.jsonl", "rejected.jsonl", "state.json"


@dataclass(frozen=True)
class Plan:
    """How many questions of what kind. All of it decides what is made, so a restart must not change it."""

    questions: int
    sampler: str = "mixed"
    seed: int = 0
    bounds: Bounds = HOPS
    rare_below: int = 6  # documents: MedResearcher-R1 seeds its subgraphs with entities rarer than a threshold

    def fingerprint(self, material: Material, solver: str, writer: str) -> dict[str, object]:
        return {
            "questions": self.questions, "sampler": self.sampler, "seed": self.seed, "min_hops": self.bounds.min_hops,
            "max_hops": self.bounds.max_hops, "rare_below": self.rare_below, "entities": len(material.graph.names),
            "edges": len(material.graph), "collection": material.collection, "solver": solver, "writer": writer,
        }  # fmt: skip


@dataclass
class _Slot:
    number: int
    attempt: int = 0
    question: Question | None = None
    reasons: list[str] = field(default_factory=list)


class Synthesis:
    """One production run into a folder."""

    def __init__(
        self,
        material: Material,
        plan: Plan,
        folder: Path,
        solver: Solver | None,
        writer: Writer | None = None,
        names: tuple[str, str] = ("", ""),
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        self._material, self._plan, self._folder, self._solver, self._say = material, plan, folder, solver, say
        self.maker = QuestionMaker(material.graph, material.phrases, material.aliases, material.collection)
        self._writer: Writer = writer or TemplateWriter(self.maker)
        self._seeds = _seeds(material, plan)
        self._seen: set[str] = set()
        self._fingerprint = plan.fingerprint(material, *names)
        self.counts: Counter[str] = Counter()

    async def run(self) -> dict[str, object]:
        """Makes what is missing; returns the summary. What is in the folder already is kept."""
        slot = self._resume()
        total = self._plan.questions
        while slot < total:
            chunk = [_Slot(number) for number in range(slot, min(slot + SLOTS_AT_ONCE, total))]
            await self._fill(chunk)
            slot += len(chunk)
            self._write(chunk, slot)
            kept, tried = self.counts["kept"], self.counts["tried"]
            self._say(f"{slot:,} of {total:,} slots: {kept:,} questions of {tried:,} drafts; {self._told()}")
        return self.summary()

    def summary(self) -> dict[str, object]:
        rejected = {reason: count for reason, count in sorted(self.counts.items()) if reason not in ("kept", "tried")}
        return {"questions": self.counts["kept"], "drafts": self.counts["tried"], "rejected": rejected, **self._fingerprint}

    def _told(self) -> str:
        rejected = [f"{count:,} {reason}" for reason, count in self.counts.most_common() if reason not in ("kept", "tried")]
        return "rejected: " + (", ".join(rejected) or "none")

    async def _fill(self, chunk: list[_Slot]) -> None:
        open_slots = list(chunk)
        while open_slots:
            for slot in open_slots:
                await self._draft(slot)
            drafted = [slot for slot in open_slots if slot.question is not None]
            if self._solver is not None and drafted:
                shares = await self._solver.right([slot.question for slot in drafted if slot.question is not None])
                for slot, share in zip(drafted, shares, strict=True):
                    if share > TOO_EASY and slot.question is not None:
                        self._seen.discard(_key(slot.question))  # as a restart, which knows what was kept, would have it
                        self._reject(slot, "too easy")
            open_slots = [slot for slot in open_slots if slot.question is None and slot.attempt < ATTEMPTS]
        for slot in chunk:
            self.counts["kept" if slot.question is not None else "slots given up"] += 1

    async def _draft(self, slot: _Slot) -> None:
        """The slot's next attempts, until one passes every check but the gate."""
        while slot.question is None and slot.attempt < ATTEMPTS:
            rng = random.Random(f"{self._plan.seed}/{slot.number}/{slot.attempt}")
            slot.attempt += 1
            self.counts["tried"] += 1
            seeds = self._seeds[slot.number % len(self._seeds)]
            piece = SAMPLERS[self._plan.sampler](self._material.graph, rng.choice(seeds), rng, self._plan.bounds)
            draft = self.maker.draft(piece, rng) if piece else None
            if draft is None:
                self._reject(slot, "no single answer" if piece else "no such piece")
                continue
            slot.question = await self._writer.write(draft)
            if reason := self._fault(slot.question):
                self._reject(slot, reason)
            else:
                self._seen.add(_key(slot.question))

    def _fault(self, question: Question) -> str:
        if _key(question) in self._seen:
            return "asked before"
        if solve(question, self._material.documents, self._material.phrases, self._material.claims) != question.gold:
            return "not solved from its documents"
        return "in the question" if is_in_question(question, self.maker.common) else ""

    def _reject(self, slot: _Slot, reason: str) -> None:
        self.counts[reason] += 1
        rejected = {"slot": slot.number, "attempt": slot.attempt, "reason": reason}
        if slot.question is not None:
            rejected |= {"text": slot.question.text, "gold": slot.question.gold}
        slot.reasons.append(json.dumps(rejected, ensure_ascii=False))
        slot.question = None

    def _write(self, chunk: list[_Slot], done: int) -> None:
        """Questions and rejections first, then the state that counts them in: what it does not count is cut off again."""
        lines = {
            QUESTIONS: [slot.question.model_dump_json(exclude_defaults=True) for slot in chunk if slot.question is not None],
            REJECTED: [line for slot in chunk for line in slot.reasons],
        }
        sizes = {}
        for name, new in lines.items():
            with (self._folder / name).open("a", encoding="utf-8") as file:
                file.writelines(f"{line}\n" for line in new)
            sizes[name] = (self._folder / name).stat().st_size
        state = {"done": done, "sizes": sizes, "counts": dict(self.counts), "plan": self._fingerprint}
        unfinished = self._folder / f"{STATE}.unfinished"
        unfinished.write_text(json.dumps(state), encoding="utf-8")
        unfinished.replace(self._folder / STATE)

    def _resume(self) -> int:
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / STATE
        if not path.exists():
            for name in (QUESTIONS, REJECTED):
                (self._folder / name).write_text("", encoding="utf-8")
            return 0
        state = read_object(path, ANEW)
        with as_written(path, ANEW):
            _same(self._folder, state["plan"], self._fingerprint)
            for name, size in state["sizes"].items():
                with (self._folder / name).open("r+b") as file:
                    file.truncate(size)
            with (self._folder / QUESTIONS).open(encoding="utf-8") as lines:
                self._seen = {_key(Question.model_validate_json(line)) for line in lines}
            self.counts = Counter(state["counts"])
            self._say(f"going on after {state['done']:,} slots")
            return int(state["done"])


def _seeds(material: Material, plan: Plan) -> list[list[int]]:
    """The rare entities of each specialty, so that every specialty gets its share; of none, where the graph has none."""
    graph = material.graph
    rare = graph.rare(plan.rare_below)
    if not rare:
        raise UserError(f"--rare-below {plan.rare_below}: no entity stands in so few documents: raise it")
    by_specialty: dict[str, list[int]] = {}
    for node in rare:
        by_specialty.setdefault(graph.specialties[node], []).append(node)
    if len(by_specialty) > 1:
        by_specialty.pop("", None)
    return [by_specialty[name] for name in sorted(by_specialty)]


def _key(question: Question) -> str:
    """Two questions that go the same way are one, whatever they are called."""
    return json.dumps([sorted(question.reference_graphs[0]), question.gold])


def _same(folder: Path, recorded: Mapping[str, object], asked: Mapping[str, object]) -> None:
    changed = [name for name in asked if recorded.get(name) != asked[name]]
    if changed:
        raise UserError(
            f"{folder}: was begun with {changed[0]} {recorded.get(changed[0])!r}, not {asked[changed[0]]!r}: name a new folder with"
            " --out, or the settings that it was begun with"
        )
