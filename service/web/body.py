"""Reading the body of a request: its size, its media type, its JSON. Whatever a client does ends in one of werkzeug's 4xx."""

from typing import Any

import orjson
from flask import Request
from gunicorn.http.errors import ParseException  # type: ignore[import-untyped]
from werkzeug.exceptions import BadRequest, RequestEntityTooLarge, UnsupportedMediaType

from service.web.upload import MAX_FILE_BYTES, MEDIA_TYPES


def read_midi_file(request: Request, max_bytes: int) -> bytes | None:
    """Return the body of a request that is a MIDI file; None if it says that it is something else.

    Raises
    ------
    BadRequest
        If it is empty, or breaks off.
    RequestEntityTooLarge, UnsupportedMediaType
        As their names say.
    """
    if request.mimetype not in MEDIA_TYPES:
        return None
    _refuse_coding(request)
    body = _read(request, min(max_bytes, MAX_FILE_BYTES), "a MIDI file")
    if not body:
        raise BadRequest("the body is empty, though `Content-Type` says that it is a MIDI file")
    return body


def read_json(request: Request, max_bytes: int) -> Any:
    """Return the parsed JSON body of a request; {} if it has neither body nor media type.

    Parameters
    ----------
    request : Request
    max_bytes : int
        Longest body.

    Raises
    ------
    BadRequest
        If the body is empty though a media type announced one, breaks off, or is not JSON.
    RequestEntityTooLarge, UnsupportedMediaType
        As their names say.
    """
    body = _read(request, max_bytes, "the body")
    if not body and not request.content_type:
        return {}
    charset = request.mimetype_params.get("charset", "utf-8").lower()
    if request.mimetype != "application/json" or charset not in ("utf-8", "utf8"):
        raise UnsupportedMediaType(
            f"the body must be application/json in UTF-8, or audio/midi; `Content-Type` is {request.content_type or 'missing'}"
        )
    _refuse_coding(request)
    if not body:
        raise BadRequest("the body is empty; send {} to leave everything to the defaults")
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise BadRequest(f"the body is not JSON: {error}") from None


def _refuse_coding(request: Request) -> None:
    coding = request.headers.get("Content-Encoding", "identity").strip().lower()
    if coding != "identity":
        raise UnsupportedMediaType(f"the body must not be compressed; `Content-Encoding` is {coding}")


def _read(request: Request, max_bytes: int, what: str) -> bytes:
    """Read the bytes past werkzeug, whose stream ends a chunked body at the limit as if it were complete."""
    stream = request.environ["wsgi.input"]
    length = request.content_length
    too_large = RequestEntityTooLarge(f"{what} must not be longer than {max_bytes} bytes")
    if length is not None and length > max_bytes:
        raise too_large
    if length is None and not request.environ.get("wsgi.input_terminated"):
        return b""
    try:
        body: bytes = stream.read(max_bytes + 1 if length is None else length)
    except (ParseException, OSError) as error:
        raise BadRequest(f"the body broke off: {error}") from None
    if len(body) > max_bytes:
        raise too_large
    if len(body) < (length or 0):
        raise BadRequest(f"the body broke off after {len(body)} of {length} bytes")
    return body
