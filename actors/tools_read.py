"""`read DOCUMENT_ID [PAGE]`: one document in full, cut into pages."""

from __future__ import annotations

from collections.abc import Callable

from actors.tools import Searcher, ToolAnswer
from retrieval_service.types import Hit, SearchQuery
from tasks.questions import Question

SHOWN_CHARACTERS = 80  # of an id that does not exist


class DocumentReader:
    """Reads what the retrieval service holds, in the question's own collection only: no other literature is within reach."""

    def __init__(self, searcher: Searcher, pages: Callable[[str], list[str]]) -> None:
        self._searcher, self._pages = searcher, pages

    async def call(self, arguments: str, question: Question) -> ToolAnswer:
        """A page, the first where none is named; a last word is the page if it is a number and a document of the words before is there."""
        whole, words = arguments.strip(), arguments.split()
        if not words:
            return ToolAnswer(note="read needs a document id and may have a page")
        candidates = [(whole, 1)]
        if len(words) > 1 and words[-1].isascii() and words[-1].isdecimal() and len(words[-1]) < 10:
            candidates.insert(0, (whole[: -len(words[-1])].strip(), int(words[-1])))
        origin = ""
        for name, page in candidates:
            found = await self._searcher.search(SearchQuery(query=name, k=1, mode="id", collection=question.collection))
            origin = found.index_hash
            if found.hits:
                return self._page(found.hits[0], page, origin)
        return ToolAnswer(note=f"no document {candidates[0][0][:SHOWN_CHARACTERS]}", origin=origin)

    def _page(self, hit: Hit, page: int, origin: str) -> ToolAnswer:
        pages = self._pages(hit.text)
        if not 1 <= page <= len(pages):
            return ToolAnswer(note=f"document {hit.id} has no page {page}, its last is {len(pages)}", origin=origin)
        text = pages[page - 1] if len(pages) == 1 else f"{pages[page - 1]} (page {page} of {len(pages)})"
        return ToolAnswer(hits=(hit.model_copy(update={"text": text}),), origin=origin)

    async def close(self) -> None:
        """Holds nothing open."""
