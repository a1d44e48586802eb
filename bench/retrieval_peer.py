"""What retrieval for RL usually is: one process, FastAPI around FAISS, a search per request. The yardstick of `bench.retrieval`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel

from retrieval_service.config import RetrievalConfig


class Asked(BaseModel):
    query: str
    k: int = 3


def plain_server(folder: str, config: RetrievalConfig, port: int, threads: int) -> None:
    """Serves `POST /search` with the index's own encoder, vectors and documents until the process is ended."""
    import faiss
    import numpy as np
    import uvicorn
    from fastapi import FastAPI

    from retrieval_service.dense import FILE as VECTORS
    from retrieval_service.documents import FILE, Documents
    from retrieval_service.encoders import HashedNgrams, load_encoder

    faiss.omp_set_num_threads(threads)
    index = faiss.read_index(str(Path(folder) / VECTORS))
    encoder = load_encoder(config)
    assert isinstance(encoder, HashedNgrams)
    encoder = encoder.load(Path(folder))
    found = Documents.open(Path(folder) / FILE).fields(np.arange(index.ntotal), ["id", "text"])
    documents = [{"id": id_, "text": text} for id_, text in zip(found["id"], found["text"], strict=True)]
    api = FastAPI()

    @api.post("/search")
    def search(asked: Asked) -> dict[str, Any]:  # not async: FastAPI runs it in a thread, as such servers do
        scores, rows = index.search(encoder.encode([asked.query], "query"), asked.k)
        hits = zip(rows[0].tolist(), scores[0].tolist(), strict=True)
        return {"hits": [{**documents[row], "score": score} for row, score in hits]}

    uvicorn.run(api, host="127.0.0.1", port=port, log_level="error", access_log=False)
