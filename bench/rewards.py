"""How fast are rule-based rewards? Every shipped recipe over 1,024 episodes of 1,000 tokens, on one core."""

from __future__ import annotations

import time
from functools import partial

from bench.harness import Result, interleaved, rate, ratio, result
from rewards.composition import score
from rewards.recipes import load_recipe, shipped
from tasks.config import WorldConfig
from tasks.prompting import question_prompt, render_documents
from tasks.questions import Question
from tasks.world import World
from trajectories.schema import Episode, Search, Segment, Source

EPISODES, TOKENS = 1_024, 1_000
GOAL_S = 1.0  # for all of them: less than a tenth of what a step's rollouts take
SEARCHES, TOP_K = 4, 3
REPETITIONS = 5

Sample = tuple[Question, Episode]


def run() -> Result:
    """CPU seconds for all episodes, recipe by recipe, against the goal of one second."""
    samples = episodes()
    recipes = {name: load_recipe(name) for name in shipped()}

    def scoring(name: str) -> float:
        started = time.process_time()  # what another program takes of the core is not the rewards' doing
        for question, episode in samples:
            score(question, episode, recipes[name])
        return time.process_time() - started

    seconds = interleaved({name: partial(scoring, name) for name in recipes}, REPETITIONS, warm_up=1)
    return result(
        [rate(f"{name}, episodes", EPISODES, spread, "1/s") for name, spread in seconds.items()],
        [
            ratio(f"{name}, seconds for {EPISODES:,} episodes", spread.median, GOAL_S, at_most=True)
            for name, spread in seconds.items()
        ],
        threads=1,
    )


def episodes(count: int = EPISODES, tokens: int = TOKENS) -> list[Sample]:
    """Searching episodes of the medical world, of exactly so many words; the model's own thinking fills what documents leave."""
    world = World("bench", WorldConfig(), held_out=False)
    questions = [world.question("world/joint", index) for index in range(64)]
    return [(question := questions[i % len(questions)], _episode(world, question, i, tokens)) for i in range(count)]


def _episode(world: World, question: Question, number: int, tokens: int) -> Episode:
    documents, searches, turns = world.documents, [], []
    for turn in range(SEARCHES):
        first = (number * SEARCHES + turn) * TOP_K % (len(documents) - TOP_K)
        found = documents[first : first + TOP_K]
        query = " ".join(found[0].text.split()[:2])
        searches.append(
            Search(
                turn, query, [d.id for d in found], [d.text for d in found], [1.0] * TOP_K,
                [d.evidence_level or 0 for d in found], "hash", 1.0,
            )
        )  # fmt: skip
        turns.append(f"<search> {query} </search> {render_documents(found)} {found[0].text}")
    frame = f"<think> {' '.join(turns)} %s </think> <answer> {question.gold} </answer>"
    rest = tokens - len(frame.split()) + 1
    filler = (f"{question_prompt(question)} " * tokens).split()[:rest]
    return Episode(
        "bench", f"g{number}", f"g{number}.0.0", question.id, 0, "joint", question.source, question.kind.value, [], [], [],
        [Segment(Source.MODEL, 0, tokens, 0)], [], searches, answer=question.gold, finish="answer", text=frame % " ".join(filler),
    )  # fmt: skip
