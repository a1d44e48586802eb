"""Encoders and rerankers that are models in a folder, as transformers or sentence-transformers write them. Nothing is downloaded.

::

    modules.json + 1_Pooling/        sentence-transformers (E5, BGE, GTE …): pooling, normalisation and prefixes are read from it
    config.json alone                transformers (Contriever …): the pooling must be said, for no file says it
    query/ + article/ (or document/) two towers (MedCPT), each one of the above; titles and texts are given apart

Weights are read from safetensors only: other formats may run code when they are opened.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from retrieval_service.encoders import Side
from retrieval_service.manifest import EncoderPart, file_checksum

Floats = npt.NDArray[np.float32]

QUERY_TOWER, DOCUMENT_TOWERS = "query", ("article", "document")
POOLINGS = ("cls", "mean", "last")
# sentence-transformers' names of them in 1_Pooling/config.json
_POOLING_KEYS = {"pooling_mode_cls_token": "cls", "pooling_mode_mean_tokens": "mean", "pooling_mode_lasttoken": "last"}
_PROMPTS = {"query": ("query",), "document": ("document", "passage", "corpus")}
_TOKENS_AT_ONCE = 16_384  # padding included: a batch of 32 texts of 512 tokens
_LONGEST = 512  # tokens, where the model's own limit is larger or not said


class ModelRefused(ValueError):
    """A folder that is no model this code can use; the text says what is wrong with it."""


class Layout(NamedTuple):
    """What a folder says of how its token vectors become one; empty and none where it does not say."""

    model: Path
    pooling: str
    normalised: bool
    prefixes: dict[str, str]
    longest: int


class ModelEncoder:
    """A model, or one for each side. The part that goes into the manifest names every setting and the checksum of the weights."""

    def __init__(self, part: EncoderPart, query: Tower, document: Tower, paired: bool) -> None:
        self.part, self.dimensions = part, document.dimensions
        self._towers: dict[str, Tower] = {"query": query, "document": document}
        self._prefixes = {"query": part.query_prefix, "document": part.document_prefix}
        self._paired = paired

    @classmethod
    def open(cls, folder: Path, pooling: str, query_prefix: str | None, document_prefix: str | None) -> ModelEncoder:
        """A ModelRefused where the folder leaves something open that decides the vectors."""
        if not folder.is_dir():
            raise ModelRefused(f"retrieval.encoder {folder}: is no folder; name one, or set it to 'hashed-ngrams'")
        article = next((folder / name for name in DOCUMENT_TOWERS if (folder / name).is_dir()), None)
        paired = article is not None and (folder / QUERY_TOWER).is_dir()
        sides = {"query": folder / QUERY_TOWER, "document": article} if paired and article else dict.fromkeys(_PROMPTS, folder)
        layouts = {side: read_layout(path) for side, path in sides.items()}
        said = pooling or layouts["document"].pooling
        if not said:
            raise ModelRefused(
                f"retrieval.encoder {folder}: does not say how token vectors become one: set retrieval.encoder_pooling (--pooling) to"
                f" {', '.join(POOLINGS)} (MedCPT and BGE: cls; E5 and Contriever: mean)"
            )
        given = {"query": query_prefix, "document": document_prefix}
        prefixes = {side: layouts[side].prefixes.get(side, "") if given[side] is None else str(given[side]) for side in sides}
        normalised = layouts["document"].normalised
        towers = {side: Tower.open(layout, said, normalised) for side, layout in layouts.items()}
        part = EncoderPart(
            name=folder.name,
            version=_weights_checksum([layout.model for layout in layouts.values()]),
            pooling=said,
            normalised=normalised,
            query_prefix=prefixes["query"],
            document_prefix=prefixes["document"],
            longest=towers["document"].longest,
        )
        return cls(part, towers["query"], towers["document"], paired)

    def encode(self, texts: Sequence[str], side: Side, pairs: Sequence[tuple[str, str]] | None = None) -> Floats:
        """One row per text; documents of a two-tower model as pairs of title and text, where they have a title."""
        tower = self._towers[side]
        if not self._paired or side == "query" or pairs is None:
            return tower.encode([self._prefixes[side] + text for text in texts])
        # Apart, because a pair whose second half is empty still has the separator that ends it.
        titled = np.array([bool(title) for title, _ in pairs], dtype=bool)
        vectors = np.empty((len(texts), self.dimensions), dtype=np.float32)
        with_title = [pair for pair in pairs if pair[0]]
        vectors[titled] = tower.encode([title for title, _ in with_title], [text for _, text in with_title])
        vectors[~titled] = tower.encode([text for title, text in pairs if not title])
        return vectors


class Tower:
    """One transformer with its tokenizer and pooling."""

    def __init__(self, tokenizer: Any, model: Any, pooling: str, normalised: bool, longest: int) -> None:
        self._tokenizer, self._model, self._pooling, self._normalised = tokenizer, model, pooling, normalised
        self.longest = longest
        self.dimensions = int(model.config.hidden_size)

    @classmethod
    def open(cls, layout: Layout, pooling: str, normalised: bool) -> Tower:
        from transformers import AutoModel

        tokenizer, model = _load(layout.model, AutoModel)
        return cls(tokenizer, model, pooling, normalised, layout.longest)

    def encode(self, first: Sequence[str], second: Sequence[str] | None = None) -> Floats:
        vectors = np.empty((len(first), self.dimensions), dtype=np.float32)
        for places, inputs in _batches(self._tokenizer, first, second, self.longest, self._model.device):
            vectors[places] = self._pool(inputs).cpu().numpy()
        return vectors

    def _pool(self, inputs: Any) -> Any:
        import torch

        with torch.inference_mode():
            hidden = self._model(**inputs).last_hidden_state.float()
            mask = inputs["attention_mask"]
            if self._pooling == "cls":
                pooled = hidden[:, 0]
            elif self._pooling == "last":
                # The last token that counts; with padding on the left that is the last one of all.
                last = mask.shape[1] - 1 - mask.flip(1).argmax(1)
                pooled = hidden[torch.arange(len(hidden), device=hidden.device), last]
            else:
                weights = mask[..., None].float()
                pooled = (hidden * weights).sum(1) / weights.sum(1).clamp(min=1)
            return torch.nn.functional.normalize(pooled, dim=1) if self._normalised else pooled


class CrossEncoder:
    """A model that reads query and document together and says how well they fit."""

    def __init__(self, tokenizer: Any, model: Any, longest: int) -> None:
        self._tokenizer, self._model, self._longest = tokenizer, model, longest

    @classmethod
    def open(cls, folder: Path) -> CrossEncoder:
        from transformers import AutoModelForSequenceClassification

        if not folder.is_dir():
            raise ModelRefused(f"retrieval.reranker {folder}: is no folder; name one, or leave it empty")
        layout = read_layout(folder)
        tokenizer, model = _load(layout.model, AutoModelForSequenceClassification)
        if model.config.num_labels != 1:
            raise ModelRefused(
                f"retrieval.reranker {folder}: gives {model.config.num_labels} scores for a pair, a reranker gives one"
            )
        return cls(tokenizer, model, layout.longest)

    def scores(self, query: str, texts: Sequence[str]) -> npt.NDArray[np.float64]:
        import torch

        scores = np.empty(len(texts), dtype=np.float64)
        with torch.inference_mode():
            for places, inputs in _batches(self._tokenizer, [query] * len(texts), texts, self._longest, self._model.device):
                scores[places] = self._model(**inputs).logits[:, 0].double().cpu().numpy()
        return scores


def read_layout(folder: Path) -> Layout:
    """What the files beside a model say of its use."""
    modules = _json(folder / "modules.json")
    prompts = _json(folder / "config_sentence_transformers.json").get("prompts") or {}
    prefixes = {side: next((prompts[name] for name in names if prompts.get(name)), "") for side, names in _PROMPTS.items()}
    if not modules:
        return Layout(folder, "", False, prefixes, _longest(folder, folder))
    pooling, normalised, model = "", False, folder
    for module in modules:
        kind, path = str(module.get("type", "")).rsplit(".", 1)[-1], folder / str(module.get("path", ""))
        if kind == "Transformer":
            model = path
        elif kind == "Pooling":
            pooling = _pooling(path / "config.json")
        elif kind == "Normalize":
            normalised = True
        else:
            raise ModelRefused(
                f"retrieval.encoder {folder}: its module {kind!r} is not known here; only Transformer, Pooling, Normalize"
            )
    return Layout(model, pooling, normalised, prefixes, _longest(model, folder))


def _pooling(path: Path) -> str:
    settings = _json(path)
    said = (
        [settings["pooling_mode"]]
        if settings.get("pooling_mode")
        else [key for key in settings if key.startswith("pooling_mode") and settings[key]]
    )
    names = [_POOLING_KEYS.get(name, {"lasttoken": "last"}.get(name, name)) for name in said]
    if len(names) != 1 or names[0] not in POOLINGS:
        raise ModelRefused(
            f"{path}: pools by {' and '.join(map(str, said)) or 'nothing'}; only one of {', '.join(POOLINGS)} is known here"
        )
    return str(names[0])


def _longest(model: Path, folder: Path) -> int:
    """The number of tokens that are read: what the folder says, within what the model has positions for."""
    said = _json(folder / "sentence_bert_config.json").get("max_seq_length")
    positions = _json(model / "config.json").get("max_position_embeddings", _LONGEST)
    return int(min(said or _LONGEST, positions))


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise ModelRefused(f"{path}: is no JSON: {error}") from None


def _load(folder: Path, kind: Any) -> tuple[Any, Any]:
    import torch
    from transformers import AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    if not (folder / "config.json").is_file():
        raise ModelRefused(f"{folder}: has no config.json: name the folder of a transformers model")
    if not any(folder.glob("*.safetensors")):
        raise ModelRefused(f"{folder}: has no *.safetensors; other weight files may run code when opened: convert them first")
    disable_progress_bar()  # the build has its own
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    model = kind.from_pretrained(
        folder, local_files_only=True, use_safetensors=True, trust_remote_code=False, dtype=torch.float32
    ).eval()
    return tokenizer, model.to("cuda" if torch.cuda.is_available() else "cpu")


def _batches(tokenizer: Any, first: Sequence[str], second: Sequence[str] | None, longest: int, device: Any) -> Any:
    """Texts of like length together, as many as `_TOKENS_AT_ONCE` holds; with their places."""
    lengths = np.array([len(text) for text in first]) + (np.array([len(text) for text in second]) if second is not None else 0)
    order = np.argsort(-lengths, kind="stable")
    step = max(1, _TOKENS_AT_ONCE // longest)
    for start in range(0, len(order), step):
        places = order[start : start + step]
        other = None if second is None else [second[i] for i in places]
        yield (
            places,
            tokenizer(
                [first[i] for i in places], other, padding=True, truncation=True, max_length=longest, return_tensors="pt"
            ).to(device),
        )


def _weights_checksum(folders: Sequence[Path]) -> str:
    """Of everything that the vectors depend on: weights, configuration, tokenizer."""
    digest = hashlib.sha256()
    for folder in folders:
        for path in sorted(folder.iterdir()):
            if path.suffix in {".safetensors", ".json", ".txt", ".model"} and path.is_file():
                digest.update(f"{path.name} {file_checksum(path)}\n".encode())
    return digest.hexdigest()[:16]
