"""The page: one self-contained HTML file. It may run and load nothing but what it holds, which its content-security-policy enforces."""

from __future__ import annotations

import base64
import hashlib
import json
from html import escape
from importlib.resources import files
from string import Template
from typing import Any

# In this order in the page: uPlot 1.6.32 (MIT, its licence lies beside it), then what uses it.
SCRIPTS = ("uPlot-1.6.32.min.js", "charts.js", "episodes.js", "page.js")
STYLES = ("uPlot-1.6.32.min.css", "page.css")


def page(view: dict[str, Any], *, live: bool) -> str:
    """`live` is for a page that is served: it may ask the server that it came from, and nobody else."""
    script = "\n".join(map(_asset, SCRIPTS))
    style = "\n".join(map(_asset, STYLES))
    reachable = "'self'" if live else "'none'"
    policy = (
        f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(style)}; img-src data:; connect-src {reachable};"
        " base-uri 'none'; form-action 'none'"
    )
    return Template(_asset("page.html")).substitute(
        name=escape(view["name"]), policy=policy, style=style, script=script, data=embedded({**view, "live": live}),
        said=escape(f"{view['state']['word']} {view['state']['text']}"),
    )  # fmt: skip


def embedded(data: Any) -> str:
    """JSON for a script element, which only `</script` and `<!--` could end or change: no `<` is left.

    Example:
        >>> embedded(["</script>"])
        '["\\\\u003c/script>"]'
    """
    return json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def _asset(name: str) -> str:
    return files("medr3.observe").joinpath("assets", name).read_text(encoding="utf-8").strip()


def _hash(text: str) -> str:
    """As a browser computes it over an inline element, whose line ends are what the file has."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
