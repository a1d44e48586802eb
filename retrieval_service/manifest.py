"""What an index is made of. An index is an immutable folder; its manifest, written last, decides whether it may be used."""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from retrieval_service.ladder import AUTO, effort

FILE = "manifest.json"
SCHEMA_VERSION = 2
SHOWN_CHARACTERS = 300  # of what is wrong with a manifest
READ = frozenset({".arrow", ".faiss", ".json", ".npy"})  # what an index's files end with


class IndexRefused(Exception):
    """The index is damaged, or it is not the one that the configuration describes; nothing is searched."""


class Part(BaseModel):
    """A piece of code whose output is in the index: another name or version would give another index."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    version: str


class EncoderPart(Part):
    """Everything that decides which vector a text gets."""

    pooling: str = ""
    normalised: bool = True
    query_prefix: str = ""
    document_prefix: str = ""
    longest: int = Field(default=0, description="tokens of a document that are read; 0: all")


class Identity(BaseModel):
    """What the code and the configuration must agree on with a built index, field by field."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: int
    metric: str
    encoder: EncoderPart
    dimensions: int
    analyzer: Part
    factory: str
    nprobe: int
    ef_search: int


class Origin(BaseModel):
    """Where the documents come from, in the words of whoever built the index."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sources: tuple[str, ...] = Field(default=(), description="names of the files, without their folders")
    date: str = Field(default="", description="of the corpus, such as 2026-01; empty: not said")
    licence: str = Field(default="", description="of the documents; empty: not said")


class IndexManifest(BaseModel):
    """The manifest. `index_hash` covers everything but when and from what it was built, so an equal corpus is an equal index."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    identity: Identity
    corpus_hash: str
    documents: int
    collections: dict[str, int] = Field(description="collection → documents, in the order of the rows")
    tokens: int = Field(description="of the vocabulary")
    recall: dict[str, float] = Field(description="k → recall at k against exact search; empty where the search is exact")
    files: dict[str, str] = Field(description="file → SHA-256")
    origin: Origin = Origin()
    parent: str = Field(default="", description="index hash of the version that this one was made from")
    built_at: str = ""
    index_hash: str = ""

    def sealed(self) -> Self:
        """With date and hash filled in."""
        return self.model_copy(update={"built_at": datetime.now(UTC).isoformat(timespec="seconds"), "index_hash": self._hash()})

    def _hash(self) -> str:
        content = self.model_dump(mode="json", exclude={"origin", "parent", "built_at", "index_hash"})
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def as_bytes(self) -> bytes:
        return (self.model_dump_json(indent=2) + "\n").encode()

    @classmethod
    def read(cls, folder: Path) -> IndexManifest:
        """The manifest of a folder, if it is whole."""
        path = folder / FILE
        try:
            content = path.read_bytes()
        except OSError as error:
            raise IndexRefused(f"{folder} is not an index: cannot read {FILE} ({error.strerror}); build it first") from error
        try:
            manifest = cls.model_validate_json(content)
        except ValidationError as error:
            wrong = ", ".join(sorted({".".join(map(str, part["loc"])) or "JSON" for part in error.errors()}))
            wrong = " ".join(wrong.split())[:SHOWN_CHARACTERS]
            raise IndexRefused(
                f"{path} is not a manifest of schema version {SCHEMA_VERSION} (wrong: {wrong}); build the index again"
            ) from error
        if manifest.index_hash != manifest._hash():
            raise IndexRefused(f"{path} was changed after the index was built; build the index again")
        return manifest

    def require(self, expected: Identity, folder: Path) -> None:
        """Refuses an index that was built in any other way than expected; an automatic factory is whichever was chosen, with its effort."""
        for name in Identity.model_fields:
            built, wanted = getattr(self.identity, name), getattr(expected, name)
            if expected.factory == AUTO and (
                name == "factory" or (name == "ef_search" and built == effort(self.identity.factory, expected.ef_search))
            ):
                continue
            if isinstance(built, Part) and built != wanted:
                name, built, wanted = _differing(name, built, wanted)
            if built != wanted:
                raise IndexRefused(
                    f"{folder} was built with {name} {_plain(built)}, wanted is {_plain(wanted)};"
                    " change the configuration or build the index again"
                )

    def verify_files(self, folder: Path) -> None:
        """Refuses an index of which any byte has changed, or which reads anything but its own files."""
        for name in sorted(self.files):
            if Path(name).name != name or (folder / name).is_symlink():
                raise IndexRefused(f"{folder / FILE} names {name!r}, which is no file of that folder; build the index again")
        strange = [path.name for path in folder.iterdir() if path.suffix in READ and path.name not in {*self.files, FILE}]
        if strange:
            raise IndexRefused(f"{folder / min(strange)} is no part of the index, and would be read: remove it")
        for name, checksum in self.files.items():
            try:
                found = file_checksum(folder / name)
            except OSError as error:
                raise IndexRefused(f"{folder / name} cannot be read ({error.strerror}); build the index again") from error
            if found != checksum:
                raise IndexRefused(f"{folder / name} is damaged: its checksum is not the manifest's; build the index again")


def file_checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _differing(name: str, built: Part, wanted: Part) -> tuple[str, object, object]:
    """The one setting in which two parts differ, or both whole where they are different things."""
    if (built.name, built.version) == (wanted.name, wanted.version):
        for field in type(built).model_fields:
            if getattr(built, field) != getattr(wanted, field):
                return f"{name} {field}", getattr(built, field), getattr(wanted, field)
    return name, built, wanted


def _plain(value: object) -> str:
    return f"{value.name!r} version {value.version!r}" if isinstance(value, Part) else repr(value)
