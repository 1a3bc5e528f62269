"""From a request to the engine's sequence, and from the engine's tokens to the piece that is answered. Pure functions.

Times are in ticks. The melody of the request stands in the piece exactly as it was given; the model has only heard it in the bins
of its tokens.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.engine.sampling import NOT_TOLD, Composition, Sequence
from service.music.piece import DEFAULT_QPM, PEDAL, KeySignature, Piece, Records, records
from service.music.playable import make_playable
from service.music.representation import decode_tokens, encode_notes
from service.music.tempos import scale_tempos, tempo_map
from service.web.player import Player
from service.web.requests import GenerateRequest


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
        Whether the piece came to its end, or was cut where its notes ran out.
    end : int
        Tick of the barline at which the piece ends; 0 where it ends with its last note.
    """

    piece: Piece
    from_seed: NDArray[np.bool_]
    random_seed: int
    model: str
    notes_composed: int
    ended: bool
    end: int


def make_sequence(request: GenerateRequest) -> Sequence:
    """Return what the engine has to compose."""
    conditions = request.conditions
    return Sequence(
        random_seed=request.random_seed,
        length=request.length,
        forced=encode_notes(request.melody, _melody_qpm(request)),
        params=request.params(),
        conditions=dict(conditions.indices),
        bar_ticks=conditions.metre.bar_ticks,
        tell_length=request.end and request.end_time is None,
        end_time=NOT_TOLD if request.end_time is None else request.end_time,
        model=request.model,
    )


def assemble(request: GenerateRequest, composition: Composition, player: Player) -> Answer:
    """Join the melody and what was composed after it.

    Without the melody the piece begins with the bar of its first note. With `bars`, nothing sounds beyond their last barline.

    Parameters
    ----------
    request : GenerateRequest
    composition : Composition
        What the engine made of `make_sequence(request)`.
    player : Player
        The model that composed it.
    """
    asked, metre = request.conditions, request.conditions.metre
    last_onset = int(request.melody["time"][-1]) if len(request.melody) else 0
    composed = decode_tokens(composition.tokens)
    new = make_playable(composed.notes)
    qpm = composed.tempo_at(new["time"])
    if asked.tempo is not None:
        qpm = scale_tempos(qpm, asked.tempo)
    new["time"] += last_onset
    if request.end_time is not None:
        new["duration"] = np.minimum(new["duration"], request.end_time - new["time"])
    origin = 0
    melody, melody_qpm = request.melody, _melody_qpm(request)
    if not request.include_seed:
        melody, melody_qpm = melody[:0], melody_qpm[:0]
        origin = (int(new["time"][0]) if len(new) else last_onset) // metre.bar_ticks * metre.bar_ticks
        new["time"] -= origin
    end = request.end_time - origin if request.end_time is not None and composition.ended else 0
    notes = np.concatenate([melody, new])
    from_seed = np.arange(len(notes)) < len(melody)
    # the canonical order of `sort_notes`; of two equal notes the melody's comes first
    order = np.lexsort((~from_seed, notes["velocity"], notes["duration"], notes["hand"], notes["pitch"], notes["time"]))
    piece = Piece(
        notes=notes[order],
        tempos=tempo_map(notes["time"], np.concatenate([melody_qpm, qpm])),
        pedals=_pedal_changes(composed.pedals, last_onset - origin, end),
        time_signatures=(metre,),
        key_signatures=(KeySignature(0, asked.key.fifths, asked.key.minor),) if asked.key else (),
        title=f"Nocturne, seed {request.random_seed}",
        copyright=player.attribution,
    )
    return Answer(piece, from_seed[order], request.random_seed, player.name, len(new), composition.ended, end)


def _melody_qpm(request: GenerateRequest) -> NDArray[np.float64]:
    """Return the tempo of each note of the melody."""
    return np.full(len(request.melody), request.conditions.tempo or DEFAULT_QPM)


def _pedal_changes(pedals: Records, offset: int, end: int) -> Records:
    """Return the pedal moved by `offset` ticks, not before 0, with only what changes it; let go at `end` if there is one."""
    pedals = pedals.copy()
    pedals["time"] = np.maximum(pedals["time"] + offset, 0)
    if end:
        pedals = np.concatenate([pedals, records(PEDAL, [(end, False)])])
    changes: Records = pedals[np.diff(pedals["down"].astype(np.int8), prepend=0) != 0]
    return changes
