"""A model behind an OpenAI-compatible server, asked through the same episode protocol as our own engines.

::

    protocol ─▶ text so far ─▶ POST completions: stop strings ─▶ text, finish reason, tokens' log-probabilities ─▶ pieces ─▶ protocol
                                    └─ 429, 5xx, late, lost, nonsense ─▶ pause, again ─▶ EndpointFailed after `attempts`
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Literal, NamedTuple, Self

import httpx
from pydantic import BaseModel, ConfigDict, Field, field_validator

from actors.engine import Completion
from medr3.evaluation.written import CHARACTERS_PER_TOKEN, END_ID, WrittenText, cut, spread
from security.addresses import check_url
from security.answers import AddressRefused, AnswerTooLarge, ask, careful_client
from security.hiding import check_variable, hide, scrub
from tasks.prompting import ANSWER_CLOSE, ANSWER_OPEN, SEARCH_CLOSE, SEARCH_OPEN
from trajectories.schema import VersionSpan

# Besides 5xx, the answers that say "later": request timeout, conflict, too early, too many requests.
LATER = frozenset({408, 409, 425, 429})
GARBAGE = (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError, OverflowError)
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 20.0
SHOWN_CHARACTERS = 200  # of what a server said, in error messages
MOST_STOPS = 4  # that OpenAI's interface allows
# vLLM says so of itself, and these keep every tag in the text and leave the prompt's text as it is.
VLLM_EXTRAS = {"include_stop_str_in_output": True, "skip_special_tokens": False, "add_special_tokens": False}
CHAT_EXTRAS = {"include_stop_str_in_output": True, "skip_special_tokens": False}


class EndpointConfig(BaseModel):
    """Where the server is and how patiently it is asked."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: str = Field(description="its base, such as http://127.0.0.1:8000/v1")
    model: str = Field(min_length=1)
    api: Literal["completions", "chat"] = "completions"
    api_key_env: str = Field(default="", description="environment variable that holds the key; empty: none is sent")
    timeout_s: float = Field(default=120, gt=0, description="of one request")
    attempts: int = Field(default=4, ge=1)
    concurrency: int = Field(default=32, ge=1, description="requests in flight")

    @field_validator("url")
    @classmethod
    def _is_plain(cls, url: str) -> str:
        return check_url(url).rstrip("/")

    _names_a_variable = field_validator("api_key_env")(check_variable)


class EndpointFailed(Exception):
    """The server did not answer as it must; the text says where, what and how often it was tried."""


class _TryAgain(Exception):
    def __init__(self, problem: str, after_s: float = 0.0) -> None:
        super().__init__(problem)
        self.after_s = after_s


class Said(NamedTuple):
    """One turn as a server tells it."""

    text: str
    stopped: bool  # by a stop string or by the model's end of text, not by length
    stop: str | None  # which stop string, where the server says so
    tokens: list[str]  # empty where it does not tell them
    logprobs: list[float]
    spent: int  # tokens


class EndpointPolicy:
    """Samples turns from a server. It stands where an engine stands, with pieces of text for tokens."""

    def __init__(self, config: EndpointConfig, text: WrittenText, render: Callable[[str], str] = str) -> None:
        """`render` puts a question into the model's chat template, as text; without one it is sent as it is."""
        self.config, self._text, self._render = config, text, render
        self._free = asyncio.Semaphore(config.concurrency)
        self._extras: dict[str, Any] = {}
        self._client = careful_client(
            base_url=config.url + "/",
            headers=_authorisation(config.api_key_env),
            timeout=config.timeout_s,
            limits=httpx.Limits(max_connections=config.concurrency, max_keepalive_connections=config.concurrency),
        )

    async def __aenter__(self) -> Self:
        """Asks the server for its models first: a dead address or a wrong name is told before any question is asked."""
        try:
            answer = await self._tried("GET", "models", None, _models)
        except EndpointFailed:
            await self._client.aclose()
            raise
        names = [name for name, _ in answer]
        if names and self.config.model not in names:
            await self._client.aclose()
            raise EndpointFailed(f"{self.config.url} has no model {self.config.model!r}; it has {', '.join(sorted(names)[:5])}")
        if any(owner == "vllm" for _, owner in answer):
            self._extras = VLLM_EXTRAS if self.config.api == "completions" else CHAT_EXTRAS
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.aclose()

    async def generate(
        self,
        request_id: str,
        prompt_ids: Sequence[int],
        *,
        max_tokens: int,
        temperature: float,
        seed: int,
        stop_token_ids: Sequence[int],
        stop_strings: Sequence[str] = (),
        forbidden_token_ids: Sequence[int] = (),
    ) -> Completion:
        """One turn. Which weights sampled it nobody can tell, so every token has version 0.0."""
        question, so_far = self._text.decode(prompt_ids[:1]), self._text.decode(prompt_ids[1:])
        payload = {
            "model": self.config.model,
            "max_tokens": max_tokens,
            "temperature": temperature,
            "seed": seed % 2**31,  # servers differ in how large a seed they take
            "stop": list(stop_strings if self._extras else stop_strings[:MOST_STOPS]),
            **self._extras,
        }
        if self.config.api == "completions":
            payload |= {"prompt": self._render(question) + so_far, "logprobs": 1}
            path, read = "completions", _completion
        else:
            payload |= {"messages": [{"role": "user", "content": question}], "logprobs": True}
            if so_far:  # the beginning of an assistant turn is to be gone on with, not answered
                payload["messages"] += [{"role": "assistant", "content": so_far}]
                payload |= {"continue_final_message": True, "add_generation_prompt": False}
            path, read = "chat/completions", _chat
        async with self._free:
            said = await self._tried("POST", path, payload, read)
        return self._pieces(said, max_tokens, so_far)

    def _pieces(self, said: Said, max_tokens: int, so_far: str) -> Completion:
        """A turn as the protocol takes it: the stop tag is in its text, and an end of text is said as such."""
        text = said.text
        ended = said.stopped and not any(text.endswith(tag) for tag in (SEARCH_CLOSE, ANSWER_CLOSE))
        if ended and (tag := said.stop or ("" if self._extras else _open_tag(so_far + text))):
            text, ended = text + tag, False  # most servers leave out the string that they stopped at
        spent = min(said.spent or -(-len(text) // CHARACTERS_PER_TOKEN), max_tokens)
        pieces = cut(text, said.tokens) if said.tokens else None
        if pieces is None or len(pieces) > max_tokens:
            pieces, logprobs = spread(text, max(spent, 1 if text else 0)), []
        else:
            logprobs = said.logprobs
        ids = [self._text.number(piece) for piece in pieces]
        if ended:
            ids, logprobs = [*ids[: max_tokens - 1], END_ID], logprobs[: max_tokens - 1]
        known = [*logprobs, *[float("nan")] * (len(ids) - len(logprobs))]
        return Completion(ids, known, [VersionSpan(0, 0, 0, len(ids))])

    async def _tried(self, method: str, path: str, payload: dict[str, Any] | None, read: Callable[[Any], Any]) -> Any:
        problem = ""
        for attempt in range(1, self.config.attempts + 1):
            try:
                return await self._once(method, path, payload, read)
            except _TryAgain as again:
                problem = str(again)
                if attempt < self.config.attempts:
                    pause_s = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** (attempt - 1)) * random.uniform(0.5, 1.0)
                    await asyncio.sleep(max(pause_s, min(again.after_s, LONGEST_PAUSE_S)))
        raise EndpointFailed(f"{self.config.url}/{path}: {problem}, {self.config.attempts} times in a row")

    async def _once(self, method: str, path: str, payload: dict[str, Any] | None, read: Callable[[Any], Any]) -> Any:
        try:
            answer = await ask(self._client, method, path, content=payload)
        except (AddressRefused, AnswerTooLarge) as error:
            raise EndpointFailed(f"{self.config.url}/{path}: {error}") from None
        except httpx.TimeoutException:
            raise _TryAgain(f"no answer within {self.config.timeout_s:g} s") from None
        except httpx.HTTPError as error:
            raise _TryAgain(f"nothing answers ({' '.join(str(error).split()) or type(error).__name__})") from None
        status = answer.status
        if method == "GET" and status in (404, 405):
            return []  # a server without a list of its models
        if status >= 500 or status in LATER:
            raise _TryAgain(f"status {status}: {_shown(answer.text)}", _retry_after_s(answer.headers))
        if status != httpx.codes.OK:
            raise EndpointFailed(f"{self.config.url}/{path}: status {status}: {_shown(answer.text)}")
        try:
            return read(answer.json())
        except GARBAGE as error:
            raise _TryAgain(f"an answer that is none ({type(error).__name__}: {_shown(str(error))})") from None


def _completion(answer: Any) -> Said:
    choice = answer["choices"][0]
    told = choice.get("logprobs") or {}
    return _said(answer, choice, choice["text"], list(told.get("tokens") or []), list(told.get("token_logprobs") or []))


def _chat(answer: Any) -> Said:
    choice = answer["choices"][0]
    told = (choice.get("logprobs") or {}).get("content") or []
    text = choice["message"]["content"]
    return _said(answer, choice, "" if text is None else text, [t["token"] for t in told], [t["logprob"] for t in told])


def _said(answer: Any, choice: Any, text: Any, tokens: list[Any], logprobs: list[Any]) -> Said:
    if not isinstance(text, str):
        raise TypeError(f"its text is {type(text).__name__}")
    reason, stop = choice.get("finish_reason"), choice.get("stop_reason")
    if reason not in ("stop", "length"):
        raise ValueError(f"it finished because of {str(reason)[:SHOWN_CHARACTERS]!r}")
    whole = len(tokens) == len(logprobs) and all(isinstance(p, int | float) for p in logprobs)
    spent = (answer.get("usage") or {}).get("completion_tokens")
    return Said(
        text=text,
        stopped=reason == "stop",
        stop=stop if isinstance(stop, str) else None,
        tokens=[str(token) for token in tokens] if whole else [],
        logprobs=[float(p) for p in logprobs] if whole else [],
        spent=spent if isinstance(spent, int) and spent > 0 else len(tokens),
    )


def _models(answer: Any) -> list[tuple[str, str]]:
    return [(str(model["id"]), str(model.get("owned_by", ""))) for model in answer["data"]]


def _open_tag(text: str) -> str:
    """The closing tag that a server must have stopped at, because its opening one is still open."""
    for opening, closing in ((SEARCH_OPEN, SEARCH_CLOSE), (ANSWER_OPEN, ANSWER_CLOSE)):
        if text.rfind(opening) > text.rfind(closing):
            return closing
    return ""


def _authorisation(variable: str) -> dict[str, str]:
    if not variable:
        return {}
    key = os.environ.get(variable, "").strip()
    if not key.isascii() or not key.isprintable() or not key:  # a bad header's error would show the key
        raise EndpointFailed(f"--api-key-env {variable}: the environment variable holds no key")
    return {"Authorization": f"Bearer {hide(key)}"}


def _retry_after_s(headers: httpx.Headers) -> float:
    value = headers.get("retry-after", "")
    return float(value) if value.isascii() and value.isdigit() else 0.0


def _shown(text: str) -> str:
    """One line of what a server said."""
    words = " ".join(scrub(text).split())
    return words if len(words) <= SHOWN_CHARACTERS else f"{words[:SHOWN_CHARACTERS]}…"
