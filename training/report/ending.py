"""Whether the model itself finds that a piece is over where it was made to stop."""

from collections.abc import Sequence as Many

import numpy as np

from service.engine.interface import Chunk
from service.engine.model import OnnxModel
from service.engine.sampling import Sequence
from service.music.representation import CONTROL, DURATIONS, FIELDS, MAX_SHIFT, Control, NoteToken, TokenArray, is_note


def chances_of_an_end(model: OnnxModel, sequences: Many[Sequence], tokens: Many[TokenArray], rows: int) -> list[float]:
    """Return the probability, under the model's own distribution, that no other note follows the last one.

    Asked at the time when the last note ends: whether the token that comes there is a control (the end, or a pedal before it).

    Parameters
    ----------
    model : OnnxModel
    sequences : sequence of Sequence
        What was asked for, of each piece.
    tokens : sequence of TokenArray
        What was composed, all of it.
    rows : int
        Pieces asked about at a time.
    """
    chances: list[float] = []
    for start in range(0, len(tokens), rows):
        part = range(start, min(start + rows, len(tokens)))
        forced = [np.concatenate([tokens[i], [_end_after(tokens[i])]]) for i in part]
        lengths = np.array([len(piece) for piece in forced])
        padded = np.stack([np.pad(piece, ((0, lengths.max() - len(piece)), (0, 0)), "edge") for piece in forced])
        asked = [sequences[i] for i in part]
        metres = [[s.conditions.get("metre", 0), s.bar_ticks, s.bar_offset] for s in asked]
        conditions = [[s.conditions.get(name, 0) for name in model.conditions] for s in asked]
        chunk = Chunk.unbiased(
            padded.astype(np.int32),
            np.zeros(padded.shape, np.float32),
            np.repeat(np.array(metres, np.int32)[:, None], padded.shape[1], axis=1),
            np.array(conditions, np.int32).reshape(len(part), -1),
            np.stack([s.left() for s in asked]),
        )
        state = model.initial_state(np.array([s.bar_offset for s in asked], np.int32))
        _, probabilities = model.run(chunk, state)
        chances += probabilities[np.arange(len(part)), lengths - 1, FIELDS.index("hand")].tolist()
    return chances


def _end_after(tokens: TokenArray) -> NoteToken:
    """Return the token that ends a piece with its last sound, or after the longest shift if that is sooner."""
    times = np.cumsum(tokens[:, 0], dtype=np.int64)
    notes = is_note(tokens)
    end = int((times[notes] + DURATIONS[tokens[notes, FIELDS.index("duration")]]).max(initial=0))
    return NoteToken(min(max(end - int(times[-1]), 0), MAX_SHIFT), CONTROL, Control.END, 0, 0, 0)
