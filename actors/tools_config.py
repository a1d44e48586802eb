"""Settings of the tools that a model may call beside search: `rollout.tools`, by the name that the model calls them by."""

from __future__ import annotations

import string
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, model_validator

from security.addresses import check_url
from security.hiding import check_variable, is_secret_name

FIELDS = ("query", "k")  # what a url or body template may name
NAME = r"^[a-z][a-z0-9_-]{0,31}$"


class ReadConfig(BaseModel):
    """`read DOCUMENT_ID [PAGE]`: a document of the question's own collection in full, page by page."""

    model_config = ConfigDict(extra="forbid")

    kind: Literal["read"] = "read"
    page_tokens: int = Field(default=512, ge=16, description="tokens of one page")


class ReasonConfig(BaseModel):
    """`reason CONTEXT: finding; finding`: P(D | findings, context) from a table of probabilities (MedResearcher-R1)."""

    model_config = ConfigDict(extra="forbid")

    kind: Literal["reason"] = "reason"
    table: Path = Field(
        description=".json or .csv of P(D | c) and P(s | D, c), readable on every node; docs/rollouts.md has an example"
    )
    unlisted: float = Field(
        default=0.01, ge=0, lt=1, description="P of a finding that a condition does not list: rare in it, but not impossible"
    )
    shown: int = Field(default=5, ge=1, description="conditions that are shown, the most probable first")


class JsonApiConfig(BaseModel):
    """`NAME query`: any search service that answers in JSON."""

    model_config = ConfigDict(extra="forbid")

    kind: Literal["json_api"] = "json_api"
    url: str = Field(description="with {query} and {k} where they belong; after the host only")
    method: Literal["GET", "POST"] = "GET"
    body: dict[str, object] | None = Field(default=None, description="JSON of a POST, with {query} and {k} inside its strings")
    header_variables: dict[str, str] = Field(
        default_factory=dict,
        description="header → environment variable that holds its value, so that no secret stands in a file",
    )
    results: str = Field(
        default="", description="where the list of results stands: keys and positions with dots, as in data.0.hits"
    )
    text: str = Field(default="text", description="where a result's text stands, from the result on")
    id: str = Field(default="id", description="where its id stands; without one, its place in the answer is its id")
    k: int = Field(default=3, ge=1, le=100, description="results that are asked for and shown")
    deadline_s: float = Field(default=10, gt=0, description="a call that takes longer voids its group")
    max_bytes: int = Field(default=1 << 20, ge=1024, description="an answer that is larger voids its group")
    max_characters: int = Field(default=4000, ge=1, description="of one result's text; the rest is cut off")
    connections: int = Field(default=16, ge=1, description="at once, per engine; further calls wait")

    @model_validator(mode="after")
    def _goes_where_it_should(self) -> Self:
        try:
            check_url(self.url)
        except ValueError as error:
            raise ValueError(f"url {error}") from None
        if "{" in urlsplit(self.url).netloc:
            raise ValueError("url: {query} may not stand in the host, nor anything else that is filled in")
        if secret := next((name for name in self.body or {} if is_secret_name(name)), ""):
            raise ValueError(f"body: {secret} would end up in results: send it in a header, header_variables")
        for variable in self.header_variables.values():
            check_variable(variable)
        templates = [self.url, *_strings(self.body)]
        named = [field for template in templates for field in _named(template)]
        if unknown := sorted(set(named) - set(FIELDS)):
            raise ValueError(f"unknown {{{unknown[0]}}}; known are {{query}} and {{k}}; write {{{{ for a brace")
        if "query" not in named:
            raise ValueError("neither url nor body names {query}: every call would ask the same")
        if (self.body is not None) != (self.method == "POST"):
            raise ValueError("a POST needs a body, and a GET has none")
        return self


ToolConfig = Annotated[ReadConfig | ReasonConfig | JsonApiConfig, Field(discriminator="kind")]
ToolName = Annotated[str, Field(pattern=NAME)]


def unknown_tools(wanted: tuple[str, ...], tools: dict[str, ToolConfig]) -> list[str]:
    """Which of the tools that a budget names are not configured."""
    return [name for name in wanted if name not in tools]


def _strings(value: object) -> list[str]:
    if isinstance(value, str):
        return [value]
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [text for each in inner for text in _strings(each)]


def _named(template: str) -> list[str]:
    try:
        return [name for _, name, _, _ in string.Formatter().parse(template) if name is not None]
    except ValueError as error:
        raise ValueError(f"template {template!r}: {error}; write {{{{ for a brace") from None
