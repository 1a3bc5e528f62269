"""A composed piece as the answer to a request: which form the client accepts, and the bytes of each."""

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


def respond(answer: Answer, media_type: str, repeatable: bool) -> Response:
    """Return the response to a request.

    Parameters
    ----------
    answer : Answer
    media_type : str
        MIDI or JSON.
    repeatable : bool
        Whether the same request has the same answer; if not, no cache may keep it.
    """
    body = write_midi(answer.piece, answer.end) if media_type == MIDI else orjson.dumps(as_json(answer))
    response = Response(body, content_type=media_type)
    response.headers["Nocturne-Seed"] = str(answer.random_seed)
    response.headers["Nocturne-Notes"] = str(answer.notes_composed)
    response.headers["Nocturne-Ended"] = str(answer.ended).lower()
    response.headers["Nocturne-Model"] = answer.model
    response.headers["Vary"] = "Accept"
    if media_type == MIDI:
        response.headers["Content-Disposition"] = f'attachment; filename="nocturne-{answer.random_seed}.mid"'
    if not repeatable:
        response.headers["Cache-Control"] = "no-store"
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
