"""Why an episode earned what it earned: one episode under one recipe, every component with its reason."""

from __future__ import annotations

import asyncio
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from medr3.errors import UserError
from medr3.json_file import read_object
from rewards.composition import Line, Score, score
from rewards.config import RewardRecipe
from rewards.earned import Earned
from rewards.extraction import settled_by_rule
from rewards.findings import NO_FINDINGS
from rewards.isolation import IsolatedRewards, RewardFailed
from rewards.recipes import load_recipe
from rewards.registry import needs
from rewards.table import episode_of
from tasks.questions import Question
from trajectories.reading import Record
from trajectories.schema import Episode

_EPISODE = TypeAdapter(Episode)
LONGEST_REASON = 90  # characters of a line that still reads well in a terminal


@dataclass(frozen=True)
class Explanation:
    """What was scored, under which recipe, and what came out."""

    question: Question
    episode: Episode
    recipe: str
    score: Score
    remarks: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        return {
            "episode": self.episode.episode_id, "question": self.question.id, "finish": self.episode.finish, "recipe": self.recipe,
            "components": [asdict(line) for line in self.score.lines], "turns": [asdict(turn) for turn in self.score.turn_rewards],
            "notes": [*self.score.notes, *self.remarks], "correct": self.score.correct, "total": self.score.total,
        }  # fmt: skip

    def __str__(self) -> str:
        wide = max(len(line.name) for line in self.score.lines)
        head = f"episode {self.episode.episode_id or '?'} of question {self.question.id}, ended by {self.episode.finish or '?'}"
        terms = [_row(line, wide) for line in self.score.lines if not line.penalty]
        penalties = [_row(line, wide) for line in self.score.lines if line.penalty]
        turns = [f"  of it in turn {part.turn + 1}: {part.name} {part.value:+.3f}" for part in self.score.turn_rewards]
        notes = [f"  note: {note}" for note in (*self.score.notes, *self.remarks)]
        told = "\n".join(
            [f"{head}, under {self.recipe}", f"  {'component':<{wide}}   value   weight    counts  why", *terms]
            + ([f"  {'penalties':<{wide}}", *penalties] if penalties else [])
            + [*notes, *turns, f"  {'total':<{wide}}  {self.score.total:+26.3f}"]
        )
        return told.encode("utf-8", "backslashreplace").decode()  # JSON may carry halves of characters, which no terminal takes


def explain(question: Question, episode: Episode, name: str, recipe: RewardRecipe) -> Explanation:
    """Scores by rule, and runs the user's own rewards where the recipe has some; no judge is asked."""
    try:
        earned = score(question, episode, recipe, NO_FINDINGS, asyncio.run(_own_rewards(recipe, question, episode)))
    except (RewardFailed, ValueError) as error:
        raise UserError(str(error)) from None
    missing = ", ".join(sorted(needs(recipe))) if not settled_by_rule(question) else ""
    remarks = (f"no judge was asked ({missing}): what it would have told is left to rules",) if missing else ()
    return Explanation(question, episode, name, earned, remarks)


def named_recipe(name: str, phase: str) -> tuple[str, RewardRecipe]:
    """A shipped recipe (`med_r3` with a phase, or `med_r3/retrieval`), or a YAML file of the same form with a phase."""
    path = Path(name)
    folder, method = ({"folder": path.parent}, path.stem) if path.suffix == ".yaml" else ({}, name)
    full = f"{method}/{phase}" if phase else method
    try:
        return full, load_recipe(full, **folder)
    except ValueError as error:
        raise UserError(str(error)) from None


def read_episode(path: Path, question_path: Path | None) -> tuple[Question, Episode]:
    """One row as JSON, its question under "question" or in a file of its own."""
    row = read_object(path)
    asked = read_object(question_path) if question_path else row.pop("question", None)
    if asked is None:
        raise UserError(f'{path}: has no "question": add it to the file, or name its file with --question')
    try:
        return Question.model_validate(asked), _EPISODE.validate_python(row)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = question_path if question_path and error.title == "Question" else path
        place = " ".join(".".join(map(str, first["loc"])).split()) or error.title
        raise UserError(f"{where}: {place}: {first['msg']}") from None


def find_episode(run: Path, episode_id: str) -> Episode:
    """The recorded row of an episode, named by its id or as group/episode."""
    try:
        row = Record(run).find(episode_id)
    except (OSError, ValueError) as error:
        raise UserError(f"{run}: {' '.join(str(error).split())}") from None
    if row is None:
        raise UserError(f"{run}: no recorded episode {episode_id!r}: medr3 trajectories show {run.name} names the last ones")
    return episode_of(row)


async def _own_rewards(recipe: RewardRecipe, question: Question, episode: Episode) -> dict[str, Earned]:
    own = IsolatedRewards(processes=1)
    try:
        return await own.run(recipe, question, episode, NO_FINDINGS)
    finally:
        own.close()


def _row(line: Line, wide: int) -> str:
    why = "; ".join(filter(None, (line.note, line.reason)))
    why = why if len(why) <= LONGEST_REASON else f"{why[:LONGEST_REASON]}…"
    return f"  {line.name:<{wide}}  {line.value:6.3f}  {line.weight:7.3g}  {line.contribution:+8.3f}  {why}"
