"""A composed piece as the answer to a request: which form the client accepts, and the bytes of each."""

import hashlib
from collections.abc import Mapping
from typing import Any

import orjson
from flask import Request, Response
from werkzeug.exceptions import NotAcceptable

from service.music.midi_writer import write_midi
from service.music.names import pitch_name
from service.music.piece import RESOLUTION, Hand
from service.web.compose import Answer

MIDI, JSON = "audio/midi", "application/json"
_ACCEPTED = {MIDI: MIDI, "audio/x-midi": MIDI, "audio/mid": MIDI, JSON: JSON}  # in order of preference, with aliases
VARY = "Accept"  # what of a request's headers its answer depends on
HOUR_S, YEAR_S = 3600, 31_536_000
_DIGITS = 5  # of a time in quarter notes: enough to find the tick again


def negotiate(request: Request) -> str:
    """Return the form in which the client wants its answer.

    Returns
    -------
    str
        MIDI, which is also the default and what */* means, or JSON.

    Raises
    ------
    NotAcceptable
        If the client accepts neither.
    """
    if not request.accept_mimetypes:
        return MIDI
    chosen = request.accept_mimetypes.best_match(_ACCEPTED)
    if chosen is None:
        raise NotAcceptable(f"the answer can be {MIDI} or {JSON}; `Accept` is {request.accept_mimetypes}")
    return _ACCEPTED[chosen]


def entity_tag(fields: Mapping[str, Any], media_type: str, model_sha256: str, version: str) -> str:
    """Return the entity tag of the answer to a request, which is known before it is composed.

    The bytes follow from what is asked for, from the model and from the program; so does the tag. It may differ for requests that
    have the same answer, never the other way round.

    Parameters
    ----------
    fields : mapping
        What is asked for, defaults filled in; with a random seed.
    media_type : str
        MIDI or JSON.
    model_sha256, version : str
        Of the model's file, and of this program.
    """
    asked = orjson.dumps([fields, media_type, model_sha256, version], option=orjson.OPT_SORT_KEYS)
    return f'"{hashlib.sha256(asked).hexdigest()[:32]}"'


def not_modified(request: Request, tag: str) -> bool:
    """Return whether the client, or the cache in front of it, has the answer already (RFC 9110, section 13)."""
    return request.if_none_match.contains_weak(tag.strip('"'))


def cache_for(kept: bool, pinned: bool, private: bool) -> str:
    """Return how long an answer may be kept, as `Cache-Control` says it.

    Parameters
    ----------
    kept : bool
        Whether the same request has the same answer, and is one that caches know.
    pinned : bool
        Whether the request names its model; which one answers otherwise is the operator's to change.
    private : bool
        Whether the answer is for this client only, who has a key.
    """
    if not kept:
        return "no-store"
    how_long = f"max-age={YEAR_S}, immutable" if pinned else f"max-age={HOUR_S}"
    return f"{'private' if private else 'public'}, {how_long}"


def respond(answer: Answer, media_type: str) -> Response:
    """Return the response to a request.

    Parameters
    ----------
    answer : Answer
    media_type : str
        MIDI or JSON.
    """
    body = write_midi(answer.piece, answer.end) if media_type == MIDI else orjson.dumps(as_json(answer))
    response = Response(body, content_type=media_type)
    response.headers["Nocturne-Seed"] = str(answer.random_seed)
    response.headers["Nocturne-Notes"] = str(answer.notes_composed)
    response.headers["Nocturne-Ended"] = str(answer.ended).lower()
    response.headers["Nocturne-Model"] = answer.model
    response.headers["Vary"] = VARY
    if media_type == MIDI:
        response.headers["Content-Disposition"] = f'attachment; filename="nocturne-{answer.random_seed}.mid"'
    return response


def as_json(answer: Answer) -> dict[str, Any]:
    """Return the answer as `Composition` of openapi.yaml."""
    piece = answer.piece
    metre = piece.time_signatures[0]
    return {
        "notes": [
            {
                "pitch": pitch,
                "name": pitch_name(pitch),
                "start": _quarters(time),
                "duration": _quarters(duration),
                "velocity": velocity,
                "hand": Hand(hand).name.lower(),
                "seed": seed,
            }
            for (time, pitch, duration, velocity, hand), seed in zip(piece.notes.tolist(), answer.from_seed.tolist(), strict=True)
        ],
        "time_signature": f"{metre.numerator}/{metre.denominator}",
        "tempos": [{"start": _quarters(time), "qpm": round(qpm, 3)} for time, qpm in piece.tempos.tolist()],
        "pedals": [{"start": _quarters(time), "down": down} for time, down in piece.pedals.tolist()],
        "random_seed": answer.random_seed,
        "model": answer.model,
        "notes_composed": answer.notes_composed,
        "ended": answer.ended,
    }


def _quarters(ticks: int) -> float:
    return round(ticks / RESOLUTION, _DIGITS)
