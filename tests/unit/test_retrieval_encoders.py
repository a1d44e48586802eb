"""Encoders and rerankers from folders: tiny models in the layouts in which the known ones are published."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer, BertConfig, BertForSequenceClassification, BertModel, BertTokenizerFast

from retrieval_service.config import RetrievalConfig
from retrieval_service.encoders import Encoder, load_encoder
from retrieval_service.index import HybridIndex, IndexRefused
from retrieval_service.towers import CrossEncoder, ModelRefused
from retrieval_service.types import SearchQuery
from retrieval_service.versions import update
from tasks.questions import Document

TEXTS = ["metformin lowers glucose", "aspirin thins the blood and eases pain", "heparin"]
_WORDS = sorted({*" ".join(TEXTS).split(), "query", "passage", ":", "title"})


def bert(folder: Path, kind: type = BertModel, seed: int = 0, **extra: int) -> Path:
    """A model of two layers that knows a dozen words, written as transformers writes it."""
    torch.manual_seed(seed)
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *_WORDS]
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48,
        max_position_embeddings=40, initializer_range=0.5, **extra,
    )  # fmt: skip
    kind(config).eval().save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    BertTokenizerFast(vocab={word: i for i, word in enumerate(vocabulary)}).save_pretrained(folder)
    return folder


def sentence_transformer(folder: Path, pooling: str, *, normalise: bool, prompts: dict[str, str] | None = None) -> Path:
    """The files that sentence-transformers adds."""
    bert(folder)
    modules = [("", "sentence_transformers.models.Transformer"), ("1_Pooling", "sentence_transformers.models.Pooling")]
    modules += [("2_Normalize", "sentence_transformers.models.Normalize")] if normalise else []
    listed = [{"idx": i, "name": str(i), "path": path, "type": type_} for i, (path, type_) in enumerate(modules)]
    (folder / "modules.json").write_text(json.dumps(listed))
    (folder / "1_Pooling").mkdir()
    names = ("pooling_mode_cls_token", "pooling_mode_mean_tokens", "pooling_mode_max_tokens", "pooling_mode_lasttoken")
    (folder / "1_Pooling" / "config.json").write_text(
        json.dumps({"word_embedding_dimension": 32} | {n: n == pooling for n in names})
    )
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 16, "do_lower_case": False}))
    if prompts:
        (folder / "config_sentence_transformers.json").write_text(json.dumps({"prompts": prompts}))
    return folder


def expected(folder: Path, texts: list[str], pooling: str, *, normalise: bool) -> np.ndarray:
    """One text at a time, so without padding: what the model's authors show in their examples."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    vectors = []
    for text in texts:
        with torch.inference_mode():
            hidden = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        vectors.append({"cls": hidden[0], "mean": hidden.mean(0), "last": hidden[-1]}[pooling].numpy())
    found = np.array(vectors)
    return found / np.linalg.norm(found, axis=1, keepdims=True) if normalise else found


def encoder(folder: Path, **settings: str) -> Encoder:
    return load_encoder(RetrievalConfig.model_validate({"encoder": str(folder), **settings}))


@pytest.mark.parametrize("pooling", ["cls", "mean", "last"])
def test_a_plain_folder_is_pooled_as_it_is_told(tmp_path: Path, pooling: str) -> None:
    folder = bert(tmp_path / "contriever")
    opened = encoder(folder, encoder_pooling=pooling)
    np.testing.assert_allclose(opened.encode(TEXTS, "query"), expected(folder, TEXTS, pooling, normalise=False), atol=2e-5)
    assert (opened.part.name, opened.part.pooling, opened.part.normalised, opened.dimensions) == (
        "contriever",
        pooling,
        False,
        32,
    )


@pytest.mark.parametrize(
    ("key", "pooling"),
    [("pooling_mode_cls_token", "cls"), ("pooling_mode_mean_tokens", "mean"), ("pooling_mode_lasttoken", "last")],
)
def test_a_sentence_transformer_says_everything_itself(tmp_path: Path, key: str, pooling: str) -> None:
    folder = sentence_transformer(tmp_path / "e5", key, normalise=True, prompts={"query": "query : ", "passage": "passage : "})
    opened = encoder(folder)
    asked = expected(folder, [f"query : {text}" for text in TEXTS], pooling, normalise=True)
    told = expected(folder, [f"passage : {text}" for text in TEXTS], pooling, normalise=True)
    np.testing.assert_allclose(opened.encode(TEXTS, "query"), asked, atol=2e-5)
    np.testing.assert_allclose(opened.encode(TEXTS, "document"), told, atol=2e-5)
    assert (opened.part.query_prefix, opened.part.document_prefix, opened.part.longest) == ("query : ", "passage : ", 16)
    bare = encoder(folder, query_prefix="", document_prefix="")
    np.testing.assert_allclose(bare.encode(TEXTS, "query"), expected(folder, TEXTS, pooling, normalise=True), atol=2e-5)


def test_two_towers_read_queries_and_pairs_of_title_and_text(tmp_path: Path) -> None:
    folder = tmp_path / "medcpt"
    bert(folder / "query", seed=1)
    article = bert(folder / "article", seed=2)
    opened = encoder(folder, encoder_pooling="cls")
    np.testing.assert_allclose(
        opened.encode(TEXTS, "query"), expected(folder / "query", TEXTS, "cls", normalise=False), atol=2e-5
    )
    tokenizer, model = AutoTokenizer.from_pretrained(article), AutoModel.from_pretrained(article).eval()
    with torch.inference_mode():
        pair = model(**tokenizer("title", TEXTS[0], return_tensors="pt")).last_hidden_state[0, 0].numpy()
    pairs = [("title", TEXTS[0]), ("", TEXTS[1])]
    found = opened.encode([f"title {TEXTS[0]}", TEXTS[1]], "document", pairs=pairs)
    np.testing.assert_allclose(found[0], pair, atol=2e-5)
    np.testing.assert_allclose(found[1:], expected(article, TEXTS[1:2], "cls", normalise=False), atol=2e-5)


def _without(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).unlink()


@pytest.mark.parametrize(
    ("damage", "settings", "reason"),
    [
        (lambda folder: None, {}, "become one: set retrieval.encoder_pooling (--pooling) to cls, mean, last"),
        (_without("config.json"), {"encoder_pooling": "cls"}, "has no config.json"),
        (_without("model.safetensors"), {"encoder_pooling": "cls"}, "has no *.safetensors; other weight files may run code"),
        (lambda folder: (folder / "modules.json").write_text("{"), {}, "modules.json: is no JSON"),
        (
            lambda folder: (folder / "modules.json").write_text('[{"type": "sentence_transformers.models.Dense", "path": "2"}]'),
            {}, "its module 'Dense' is not known here",
        ),
    ],
)  # fmt: skip
def test_a_folder_that_leaves_something_open_is_refused(
    tmp_path: Path, damage: Callable[[Path], object], settings: dict[str, str], reason: str
) -> None:
    folder = bert(tmp_path / "model")
    damage(folder)
    with pytest.raises(ModelRefused) as refused:
        encoder(folder, **settings)
    assert reason in str(refused.value) and "\n" not in str(refused.value)


def test_a_pooling_that_is_not_known_is_refused(tmp_path: Path) -> None:
    folder = sentence_transformer(tmp_path / "model", "pooling_mode_max_tokens", normalise=False)
    with pytest.raises(ModelRefused, match="pools by pooling_mode_max_tokens; only one of cls, mean, last is known here"):
        encoder(folder)


DOCUMENTS = [Document(id=f"d{i}", text=text, title="title" if i else "") for i, text in enumerate(TEXTS)]


def test_an_index_of_a_model_refuses_every_other_setting_and_grows_without_encoding_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = bert(tmp_path / "model")
    config = RetrievalConfig(encoder=str(folder), encoder_pooling="mean")
    HybridIndex.build(DOCUMENTS, tmp_path / "index", config)
    found = HybridIndex.load(tmp_path / "index", config).search([SearchQuery(query=TEXTS[0], mode="dense", k=1)])[0]
    assert found.hits[0].id == "d0"
    for change, reason in (
        ({"encoder_pooling": "cls"}, "built with encoder pooling 'mean', wanted is 'cls'"),
        ({"query_prefix": "query : "}, "built with encoder query_prefix '', wanted is 'query : '"),
        ({"encoder": str(bert(tmp_path / "other" / "model", seed=9))}, "built with encoder 'model' version"),
        ({"encoder": "hashed-ngrams"}, "built with encoder 'model' version"),
    ):
        with pytest.raises(IndexRefused, match=reason):
            HybridIndex.load(tmp_path / "index", config.model_copy(update=change))

    from retrieval_service.towers import ModelEncoder

    encode, encoded = ModelEncoder.encode, list[str]()

    def counting(self: ModelEncoder, texts: list[str], *arguments: object, **named: object) -> np.ndarray:
        encoded.extend(texts)
        return encode(self, texts, *arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(ModelEncoder, "encode", counting)
    added = [Document(id="d9", text="heparin thins the blood")]
    update(tmp_path / "index", tmp_path / "new", config, add=lambda: added, retire=frozenset({"d1"}))
    assert encoded == ["heparin thins the blood"]
    monkeypatch.undo()
    straight = HybridIndex.build([DOCUMENTS[0], DOCUMENTS[2], *added], tmp_path / "straight", config)
    assert HybridIndex.load(tmp_path / "new", config).manifest.corpus_hash == straight.corpus_hash


def test_vectors_that_are_not_finite_are_never_indexed(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = bert(tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    weights["encoder.layer.1.output.dense.bias"][3] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"document 'd.': the encoder gives a vector that is not finite"):
        HybridIndex.build(DOCUMENTS, tmp_path / "index", RetrievalConfig(encoder=str(folder), encoder_pooling="mean"))


def test_a_cross_encoder_orders_the_hybrid_candidates(tmp_path: Path) -> None:
    folder = bert(tmp_path / "reranker", BertForSequenceClassification, num_labels=1)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = BertForSequenceClassification.from_pretrained(folder).eval()
    contents = {d.id: f"{d.title} {d.text}".strip() for d in DOCUMENTS}
    query = "blood pain"
    with torch.inference_mode():
        wanted = {name: float(model(**tokenizer(query, text, return_tensors="pt")).logits) for name, text in contents.items()}
    config = RetrievalConfig(dimensions=64, reranker=str(folder))
    HybridIndex.build(DOCUMENTS, tmp_path / "index", config)
    hybrid, dense = HybridIndex.load(tmp_path / "index", config).search(
        [SearchQuery(query=query), SearchQuery(query=query, mode="dense")]
    )
    assert [hit.id for hit in hybrid.hits] == sorted(wanted, key=lambda name: -wanted[name])
    assert [hit.score for hit in hybrid.hits] == pytest.approx(sorted(wanted.values(), reverse=True), abs=2e-5)
    plain = HybridIndex.load(tmp_path / "index", RetrievalConfig(dimensions=64))
    assert dense == plain.search([SearchQuery(query=query, mode="dense")])[0], "a half by itself is left as it is"
    with pytest.raises(ModelRefused, match="gives 3 scores for a pair, a reranker gives one"):
        CrossEncoder.open(bert(tmp_path / "classifier", BertForSequenceClassification, num_labels=3))
