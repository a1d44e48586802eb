"""Tools that a model may call beside search, and how they fail.

A call ends in one of three ways: an answer; an observation that says what was wrong with the model's own arguments, from which it
can learn; or a `ToolFailed`, which voids the group exactly as a failed search does. What failed is never an observation.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from actors.tokens import EpisodeTokenizer
from actors.tools_config import JsonApiConfig, ReadConfig, ReasonConfig, ToolConfig
from retrieval_service.types import Hit, SearchQuery, SearchResult
from tasks.questions import Question


class ToolFailed(Exception):
    """The tool could not answer, for no fault of the model: the group is voided and re-leased; nothing is trained on."""


class ToolTimeout(ToolFailed):
    """No answer within the deadline."""


class ToolRejected(ToolFailed):
    """The service behind it is over its bound and said so."""


@dataclass(frozen=True, slots=True)
class ToolAnswer:
    """What a call brought: documents, which count as retrieved, and `note`, the tool's own words, which do not."""

    hits: tuple[Hit, ...] = ()
    note: str = ""
    origin: str = ""  # what answered: an index hash, a table's checksum, a host

    @property
    def texts(self) -> list[str]:
        """What the model is shown, each in document tags of its own."""
        return [hit.text for hit in self.hits] + ([self.note] if self.note else [])


class Tool(Protocol):
    """One tool. It serves many episodes at once, and may be asked about any question."""

    async def call(self, arguments: str, question: Question) -> ToolAnswer:
        """Raises `ToolFailed`, or a failure of the retrieval service, where it cannot answer."""
        ...

    async def close(self) -> None: ...


class Searcher(Protocol):
    """The retrieval client, as far as episodes and tools need it."""

    async def search(self, query: SearchQuery) -> SearchResult: ...


Builder = Callable[[Any, Searcher, EpisodeTokenizer], Tool]


def _read(config: ReadConfig, searcher: Searcher, tokenizer: EpisodeTokenizer) -> Tool:
    from actors.tools_read import DocumentReader

    return DocumentReader(searcher, lambda text: tokenizer.pages(text, config.page_tokens))


def _reason(config: ReasonConfig, searcher: Searcher, tokenizer: EpisodeTokenizer) -> Tool:
    from actors.tools_reason import ClinicalReasoner

    return ClinicalReasoner.from_config(config)


def _json_api(config: JsonApiConfig, searcher: Searcher, tokenizer: EpisodeTokenizer) -> Tool:
    from actors.tools_json_api import JsonApi

    return JsonApi(config)


# Kind of configuration → what makes the tool.
KINDS: dict[str, Builder] = {"read": _read, "reason": _reason, "json_api": _json_api}


def build_tools(configs: Mapping[str, ToolConfig], searcher: Searcher, tokenizer: EpisodeTokenizer) -> dict[str, Tool]:
    """The configured tools by name; ValueError in one line where one of them cannot be made."""
    tools: dict[str, Tool] = {}
    for name, config in configs.items():
        try:
            tools[name] = KINDS[config.kind](config, searcher, tokenizer)
        except ValueError as error:
            raise ValueError(f"rollout.tools.{name}: {error}") from None
    return tools


async def close_tools(tools: Mapping[str, Tool]) -> None:
    await asyncio.gather(*(tool.close() for tool in tools.values()))
