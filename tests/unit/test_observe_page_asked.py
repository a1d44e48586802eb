"""What the page says that an episode was asked: the question made anew, where its row's prompt holds it, else the prompt."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

from medr3.cli_common import load_config
from medr3.observe.asked import AskedQuestions
from tasks.questions import Question
from tasks.world import Universe


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Question, Tokenizer]:
    """A run's folder, one of its questions, and a tokenizer that knows the question's words."""
    folder = tmp_path_factory.mktemp("runs") / "demo"
    (folder / "cold_start").mkdir(parents=True)
    config = load_config(Path("configs/demo.yaml"), ["world.training_worlds=1", f"run.folder={folder}"])
    (folder / "config.json").write_text(json.dumps(config.model_dump(mode="json")))
    question = Universe.build(config.world, config.run.seed).training_question("world/reasoning", 3)
    words = ["<user>", "<assistant>", "something", "else", *question.text.split()]
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(dict.fromkeys(words))}, unk_token="something"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.save(str(folder / "cold_start" / "tokenizer.json"))
    return folder, question, tokenizer


def row(question: Question, tokenizer: Tokenizer, prompt: str) -> dict[str, object]:
    ids = tokenizer.encode(prompt).ids
    segments = [{"source": "prompt", "start": 0, "end": len(ids), "turn": -1}]
    return {"question_id": question.id, "token_ids": [*ids, 0, 1], "segments": segments}


def test_a_question_that_the_prompt_holds_is_shown_with_its_answer_and_documents(run: tuple[Path, Question, Tokenizer]) -> None:
    folder, question, tokenizer = run
    asked = AskedQuestions(folder)(row(question, tokenizer, f"<user> {question.text} <assistant>"))
    assert asked is not None
    assert (asked.text, asked.gold, asked.options) == (question.text, question.gold, question.options)
    assert [document[0] for document in asked.documents] == [document.id for document in question.context]
    assert question.context


def test_another_question_of_that_id_is_not_shown_but_the_prompt_is(run: tuple[Path, Question, Tokenizer]) -> None:
    folder, question, tokenizer = run
    asked = AskedQuestions(folder)(row(question, tokenizer, "<user> something else <assistant>"))
    assert asked is not None
    assert (asked.text, asked.gold) == ("<user> something else <assistant>", "")


def test_a_question_of_no_world_is_shown_as_its_prompt(run: tuple[Path, Question, Tokenizer]) -> None:
    folder, question, tokenizer = run
    told = row(question, tokenizer, "<user> something <assistant>") | {"question_id": "own/file/17"}
    asked = AskedQuestions(folder)(told)
    assert asked is not None and asked.text == "<user> something <assistant>"


def test_without_a_tokenizer_the_question_is_taken_at_its_word(run: tuple[Path, Question, Tokenizer], tmp_path: Path) -> None:
    folder, question, tokenizer = run
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    asked = AskedQuestions(tmp_path)(row(question, tokenizer, "<user> something <assistant>"))
    assert asked is not None and asked.gold == question.gold
