"""`medr3 dashboard`: the page of a run, served to this machine's browsers and kept up to date.

::

    files ─one look a second─▶ Follower ──Condition──▶ one thread per open page ──server-sent events──▶ browser
    Parquet ◀─read when asked─ EpisodeShelf ◀─ /episodes, /episode
"""

from __future__ import annotations

import json
import threading
import time
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from medr3.errors import UserError
from medr3.observe.asked import AskedQuestions
from medr3.observe.browsing import EpisodeShelf, Place, Wanted
from medr3.observe.following import Follower, Revision
from medr3.observe.page import page
from medr3.observe.record import check_run_folder

LOOK_S = 1.0  # a step takes seconds at least
LOOKING = 0.1  # the share of the time that goes into looking: a run of 5,000 steps takes a second to sum up
HEARTBEAT_S = 15.0  # a tunnel or a proxy forgets a connection that is silent for a minute
LONGEST = 2_000  # characters of a request's query


class Dashboard:
    """Serves one run on the loopback interface until `close`. `watch` looks at its files until then."""

    def __init__(self, run_folder: Path, port: int) -> None:
        check_run_folder(run_folder)
        self.follower = Follower(run_folder)
        self.follower.look()
        self.shelf = EpisodeShelf(run_folder, AskedQuestions(run_folder), self.follower.survives)
        self.closing = threading.Event()
        try:
            self._server = _Server(("127.0.0.1", port), _Handler)
        except (OSError, OverflowError) as error:
            raise UserError(f"--port {port}: cannot listen there ({error}): name another, or 0 for a free one") from None
        self._server.dashboard = self
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, name="dashboard", daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def watch(self) -> None:
        """Returns when the dashboard is closed."""
        pause = LOOK_S
        while not self.closing.wait(pause):
            began = time.monotonic()
            self.follower.look()
            pause = max(LOOK_S, (time.monotonic() - began) / LOOKING)

    def close(self) -> None:
        self.closing.set()
        self.follower.wake()
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    dashboard: Dashboard


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "medr3", ""
    timeout = 60  # a browser that sends half a request holds no thread for ever

    def do_GET(self) -> None:
        """A page of elsewhere must not read this one through a name that it points at this machine."""
        if self.headers.get("Host", "").partition(":")[0] not in ("127.0.0.1", "localhost"):
            self._answer(HTTPStatus.FORBIDDEN, "text/plain", "ask for this page as 127.0.0.1 or localhost\n")
            return
        parts = urlsplit(self.path)
        query = {name: values[-1] for name, values in parse_qs(parts.query[:LONGEST]).items()}
        answers = {"/": self._page, "/live": self._live, "/episodes": self._episodes, "/episode": self._episode}
        answer = answers.get(parts.path)
        try:
            if answer is None:
                self._answer(HTTPStatus.NOT_FOUND, "text/plain", "there is no such page\n")
            else:
                answer(query)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True  # the reader went away
        except (OSError, ValueError) as error:
            self._answer(HTTPStatus.INTERNAL_SERVER_ERROR, "text/plain", f"the run cannot be read: {error}\n")

    def _page(self, query: dict[str, str]) -> None:
        self._answer(HTTPStatus.OK, "text/html", page(self.server.dashboard.follower.view, live=True))

    def _episodes(self, query: dict[str, str]) -> None:
        step, after = query.get("step", ""), query.get("after", "")
        place = Place.parse(after) if after else None
        if (step and not step.isdecimal()) or (after and place is None):
            self._answer(
                HTTPStatus.BAD_REQUEST, "text/plain", "step is a number, and after is what the last answer called next\n"
            )
            return
        wanted = Wanted(
            query.get("phase", ""),
            query.get("verdict", ""),
            query.get("outcome", ""),
            query.get("words", ""),
            int(step) if step else None,
        )
        self._json(self.server.dashboard.shelf.page(wanted, place))

    def _episode(self, query: dict[str, str]) -> None:
        place = Place.parse(query.get("place", ""))
        found = self.server.dashboard.shelf.one(place) if place else None
        if found is None:
            self._answer(HTTPStatus.NOT_FOUND, "text/plain", "there is no such episode\n")
        else:
            self._json(found)

    def _live(self, query: dict[str, str]) -> None:
        """Events until the reader goes, or the dashboard is closed. A reader who comes back says where it was."""
        known = Revision.parse(self.headers.get("Last-Event-ID", "") or query.get("from", ""))
        self.send_response(HTTPStatus.OK)
        self._headers("text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        self.wfile.write(b": medr3\n\n")
        while not self.server.dashboard.closing.is_set():
            new = self.server.dashboard.follower.newer(known, HEARTBEAT_S)
            if new is None:
                self.wfile.write(b": still here\n\n")
            else:
                known, told = new
                self.wfile.write(f"id: {known}\nevent: run\ndata: {_compact(told)}\n\n".encode())

    def _json(self, found: dict[str, Any]) -> None:
        self._answer(HTTPStatus.OK, "application/json", _compact(found))

    def _answer(self, status: HTTPStatus, kind: str, text: str) -> None:
        content = text.encode()
        self.send_response(status)
        self._headers(f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _headers(self, kind: str) -> None:
        self.send_header("Content-Type", kind)
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Referrer-Policy", "no-referrer")
        self.send_header("Cross-Origin-Resource-Policy", "same-origin")
        self.send_header("X-Frame-Options", "DENY")

    def log_message(self, *args: Any) -> None:
        """A terminal that shows a page needs no line for each request."""


def _compact(found: dict[str, Any]) -> str:
    return json.dumps(found, separators=(",", ":"), allow_nan=False)
