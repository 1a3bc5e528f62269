"""From a request to the engine's sequence, and from the engine's tokens to the piece that is answered. Pure functions.

Times are in ticks. The melody of the request stands in the piece exactly as it was given; the model has only heard it in the bins
of its tokens.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.engine.sampling import Composition, Sequence
from service.errors import ModelMismatch
from service.music.piece import COMMON_TIME, Piece, Records, TimeSignature
from service.music.representation import decode_tokens, encode_notes, time_signature_index
from service.web.requests import GenerateRequest

MAX_STRUCK = 4  # composed notes on one key at one onset; with those that a melody may hold, MIDI has a channel for each


@dataclass(frozen=True)
class Player:
    """What the service must know of the model that plays.

    Attributes
    ----------
    name : str
    metre : TimeSignature
        The one that it composes in.
    conditions : mapping of str to int
        Index of each condition.
    attribution : str
        Whose music it learned from; written into every file.
    """

    name: str
    metre: TimeSignature
    conditions: Mapping[str, int]
    attribution: str

    @classmethod
    def from_metadata(cls, name: str, metadata: Mapping[str, Any]) -> "Player":
        """Read a model's metadata. A default that its data did not have is left out, which means "not given".

        Raises
        ------
        ModelMismatch
            If the default metre is none.
        """
        defaults = metadata.get("defaults", {})
        metre = _parse_metre(defaults.get("time_signature", f"{COMMON_TIME.numerator}/{COMMON_TIME.denominator}"))
        conditions = {"metre": time_signature_index(metre)}
        for condition, values in metadata.get("conditions", {}).items():
            if condition in defaults and defaults[condition] in values:
                conditions[condition] = list(values).index(defaults[condition])
        return cls(name, metre, conditions, str(metadata.get("attribution", "")))


@dataclass(frozen=True, eq=False)
class Answer:
    """A piece and how it came about.

    Attributes
    ----------
    piece : Piece
    from_seed : bool array, shape (N,)
        Which of its notes are the request's melody.
    random_seed : int
    model : str
    notes_composed : int
    ended : bool
        Whether the piece came to its end before the length that was asked for.
    """

    piece: Piece
    from_seed: NDArray[np.bool_]
    random_seed: int
    model: str
    notes_composed: int
    ended: bool


def make_sequence(request: GenerateRequest, player: Player) -> Sequence:
    """Return what the engine has to compose."""
    return Sequence(
        random_seed=request.random_seed,
        length=request.length,
        forced=encode_notes(request.melody),
        params=request.params(),
        conditions=dict(player.conditions),
        bar_ticks=player.metre.bar_ticks,
    )


def assemble(request: GenerateRequest, composition: Composition, player: Player) -> Answer:
    """Join the melody and what was composed after it.

    Without the melody the piece begins with the bar of its first note.

    Parameters
    ----------
    request : GenerateRequest
    composition : Composition
        What the engine made of `make_sequence(request, player)`.
    player : Player
    """
    last_onset = int(request.melody["time"][-1]) if len(request.melody) else 0
    composed = decode_tokens(composition.tokens)
    new = release_keys(composed.notes)
    new["time"] += last_onset
    origin = 0
    if request.include_seed:
        melody, tempos = request.melody, decode_tokens(np.concatenate([encode_notes(request.melody), composition.tokens])).tempos
    else:
        melody, tempos = request.melody[:0], composed.tempos
        origin = int(new["time"][0]) // player.metre.bar_ticks * player.metre.bar_ticks if len(new) else last_onset
        new["time"] -= origin
        tempos["time"][1:] += last_onset - origin  # the first one holds from the beginning
    notes = np.concatenate([melody, new])
    from_seed = np.arange(len(notes)) < len(melody)
    # the canonical order of `sort_notes`; of two equal notes the melody's comes first
    order = np.lexsort((~from_seed, notes["velocity"], notes["duration"], notes["hand"], notes["pitch"], notes["time"]))
    piece = Piece(
        notes=notes[order],
        tempos=tempos,
        pedals=_pedal_changes(composed.pedals, last_onset - origin),
        time_signatures=(player.metre,),
        title=f"Nocturne, seed {request.random_seed}",
        copyright=player.attribution,
    )
    return Answer(piece, from_seed[order], request.random_seed, player.name, len(new), composition.ended)


def release_keys(notes: Records) -> Records:
    """Return composed notes such that a key that is struck while it sounds is let go first.

    Parameters
    ----------
    notes : structured array of dtype NOTE
        In canonical order. Not modified.

    Returns
    -------
    structured array of dtype NOTE
        Durations are shortened. Of more than MAX_STRUCK notes on one key at one onset the rest is left out, since a file could
        not hold them; only a broken model writes that.
    """
    notes = notes.copy()
    keep = np.ones(len(notes), np.bool_)
    sounding: dict[int, list[int]] = {}  # by pitch: the notes of its latest onset
    times = notes["time"].tolist()
    for i, pitch in enumerate(notes["pitch"].tolist()):
        struck = sounding.get(pitch, [])
        if struck and times[struck[0]] < times[i]:
            notes["duration"][struck] = np.minimum(notes["duration"][struck], times[i] - times[struck[0]])
            struck = []
        if len(struck) >= MAX_STRUCK:
            keep[i] = False
        else:
            sounding[pitch] = [*struck, i]
    return notes[keep]


def _pedal_changes(pedals: Records, offset: int) -> Records:
    """Return the pedal moved by `offset` ticks, not before 0, with only what changes it."""
    pedals = pedals.copy()
    pedals["time"] = np.maximum(pedals["time"] + offset, 0)
    changes: Records = pedals[np.diff(pedals["down"].astype(np.int8), prepend=0) != 0]
    return changes


def _parse_metre(text: str) -> TimeSignature:
    numerator, _, denominator = str(text).partition("/")
    if not (numerator.isdecimal() and denominator.isdecimal() and int(numerator) and int(denominator)):
        raise ModelMismatch(f"the model's default `time_signature` must look like 4/4; it is {text!r}")
    return TimeSignature(0, int(numerator), int(denominator))
