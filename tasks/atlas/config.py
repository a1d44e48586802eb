"""Settings of the large medical world."""

from __future__ import annotations

from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

SMALLEST_COLLECTION = 360  # documents that settle something: one entity of each type in each specialty needs 303
MOST_DOCUMENTS = (
    1_000_000  # names are made of three syllables, of which there are a million combinations, half of them for aliases
)


class AtlasConfig(BaseModel):
    """A fictional medicine of twelve specialties, as large as `documents` says. All else is a share."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    seed: int = 0
    documents: int = Field(default=20_000, ge=1_000, le=MOST_DOCUMENTS, description="of both collections together")
    held_out_share: float = Field(default=0.1, gt=0, lt=0.5, description="of the documents; its entities appear nowhere else")
    distractors: float = Field(
        default=0.1, ge=0, lt=0.9, description="share of documents that name entities and settle nothing"
    )
    weaker_agrees: float = Field(default=0.15, ge=0, le=1, description="chance that a weaker document tells the truth")
    same_specialty: float = Field(default=0.85, ge=0, le=1, description="chance that a fact stays within its specialty")
    aliases: float = Field(default=0.5, ge=0, le=1, description="share of the entities that have a second name")
    alias_shown: float = Field(default=0.5, ge=0, le=1, description="chance that a document about such an entity says so")

    @model_validator(mode="after")
    def _every_specialty_has_entities(self) -> Self:
        settling = self.documents * min(self.held_out_share, 1 - self.held_out_share) * (1 - self.distractors)
        if settling < SMALLEST_COLLECTION:
            raise ValueError(
                f"documents: {self.documents:,} leave the held-out collection {settling:.0f} that settle something; it needs"
                f" {SMALLEST_COLLECTION}: raise documents or held_out_share"
            )
        return self
