"""What must agree between a built index and the code and configuration that search it."""

from __future__ import annotations

from retrieval_service import analyzer, dense, manifest
from retrieval_service.config import RetrievalConfig
from retrieval_service.encoders import Encoder, load_encoder
from retrieval_service.lexical import Scope
from retrieval_service.manifest import Identity, IndexManifest, Part


def identity(encoder: Encoder, config: RetrievalConfig, factory: str) -> Identity:
    return Identity(
        schema_version=manifest.SCHEMA_VERSION,
        metric=dense.METRIC,
        encoder=encoder.part,
        dimensions=encoder.dimensions,
        analyzer=Part(name=analyzer.NAME, version=analyzer.VERSION),
        factory=factory,
        nprobe=config.nprobe,
        ef_search=config.ef_search,
    )


def expected_identity(config: RetrievalConfig) -> Identity:
    """What the manifest of an index must say so that this code may use it under this configuration."""
    return identity(load_encoder(config), config, config.factory)


def config_of(built: IndexManifest, config: RetrievalConfig) -> RetrievalConfig:
    """The configuration with the settings that an index was built with, for whoever serves or measures what is there.

    A model has a name in the manifest and its folder in the configuration alone, so `encoder` stays as it is.
    """
    part = built.identity
    changes: dict[str, object] = {
        "dimensions": part.dimensions, "factory": part.factory, "nprobe": part.nprobe, "ef_search": part.ef_search,
        "encoder_pooling": part.encoder.pooling, "query_prefix": part.encoder.query_prefix,
        "document_prefix": part.encoder.document_prefix,
    }  # fmt: skip
    return config.model_copy(update=changes)


def scopes_of(collections: dict[str, int]) -> list[Scope]:
    """The whole corpus first, then every named collection that is not the whole."""
    scopes, start = [Scope("", 0, sum(collections.values()))], 0
    for name, count in collections.items():
        if name and len(collections) > 1:
            scopes.append(Scope(name, start, start + count))
        start += count
    return scopes
