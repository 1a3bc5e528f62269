"""The page at /docs: openapi.yaml to read, and a form to try it. Made once; loads nothing from anywhere else.

Its script and style are inline and named by their hashes in the Content-Security-Policy, so that nothing else can run in it.
"""

import base64
import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flask import Response
from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup, escape

from service.web.contract import METHODS
from service.web.violations import Schema, resolve

_TEMPLATES = Path(__file__).parent / "templates"


class DocsPage:
    """The page for a document.

    Parameters
    ----------
    document : Schema
        The parsed openapi.yaml.
    """

    def __init__(self, document: Schema) -> None:
        script, style = ((_TEMPLATES / name).read_text(encoding="utf-8") for name in ("docs.js", "docs.css"))
        environment = Environment(loader=FileSystemLoader(_TEMPLATES), autoescape=True, trim_blocks=True, lstrip_blocks=True)
        environment.filters["prose"] = _prose
        fields = document["components"]["schemas"]["GenerateRequest"]["properties"]
        self._html = environment.get_template("docs.html").render(
            info=document["info"],
            operations=list(_operations(document)),
            fields={name: resolve(schema, document) for name, schema in fields.items()},
            note={name: resolve(s, document) for name, s in document["components"]["schemas"]["Note"]["properties"].items()},
            melody=document["components"]["schemas"]["Melody"]["description"],
            script=Markup(script),
            style=Markup(style),
        )
        self._policy = (
            f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(style)}'; connect-src 'self'; "
            "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )

    def response(self) -> Response:
        """Return the page."""
        return Response(self._html, content_type="text/html; charset=utf-8", headers={"Content-Security-Policy": self._policy})


def _operations(document: Schema) -> Iterator[dict[str, Any]]:
    for path, item in document["paths"].items():
        for method in METHODS:
            if method in item:
                operation = item[method]
                responses = {status: resolve(response, document) for status, response in operation["responses"].items()}
                yield {**operation, "method": method.upper(), "path": path, "responses": responses}


def _prose(text: str) -> Markup:
    """Return a description as HTML: `code` in backticks, and indented lines as a block of code."""
    blocks = []
    for block in re.split(r"\n\n", text.rstrip()):
        if block.startswith("    "):
            blocks.append(Markup("<pre>{}</pre>").format(re.sub(r"(?m)^ {4}", "", block)))
        else:
            code = re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(block)))
            blocks.append(Markup(f"<p>{code}</p>"))
    return Markup("").join(blocks)


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
