"""What a piece can be asked for beside its notes: composer, rendition, key, tempo, and how much of it is left.

Each is an index whose value 0 means "not told". The names of the values stand in the exported model, where the
service finds them.
"""

import numpy as np
from numpy.typing import NDArray

from service.music.keys import KEY_NAMES
from service.music.piece import RESOLUTION
from service.music.representation import (
    CONTROL,
    DEFAULT_TEMPO_INDEX,
    FIELDS,
    TEMPO_STEPS_PER_DOUBLING,
    TEMPOS,
    EncodedPiece,
    TokenArray,
    decode_tokens,
)
from training.keys import PROFILES, estimate_key
from training.memory import BAR_TICKS

UNKNOWN = "unknown"  # index 0 of every condition: "not told"
RENDITIONS = (UNKNOWN, "score", "performed")
KEYS = (UNKNOWN, *KEY_NAMES)
# Tempo classes of three steps of the vocabulary (12 %) each, from 30 to 240 quarter notes per minute, by their middle.
_TEMPO_STEP = 3
_TEMPO_INDICES = DEFAULT_TEMPO_INDEX + np.arange(-2 * TEMPO_STEPS_PER_DOUBLING, TEMPO_STEPS_PER_DOUBLING + 1, _TEMPO_STEP)
TEMPO_CLASSES = (UNKNOWN, *(f"{TEMPOS[i]:.0f}" for i in _TEMPO_INDICES))
# What a piece is expected to be before its first note, by the index of its condition: the running tempo, and the pitch classes as
# if the key had been heard for long (PROFILES, summing to 12). Nothing where the condition is not told.
EXPECTED_TEMPO = np.concatenate([[0], _TEMPO_INDICES]).astype(np.int32)
EXPECTED_PITCH_CLASSES = np.concatenate([np.zeros((1, 12)), 12 * PROFILES / PROFILES.sum(axis=1, keepdims=True)])
OPENING = 128  # notes whose key and tempo are those of the piece, as a condition: what follows may go elsewhere

# From which count on the notes left are of the next class: each number to itself up to 16, then four classes to a doubling.
_NOTES_LEFT_EDGES = np.concatenate([np.arange(1, 17), np.unique(np.round(2 ** np.arange(4.25, 11.01, 0.25)).astype(int))])
_BARS_LEFT_EDGES = np.array([*range(1, 17), 20, 24, 28, 32, 40, 48, 64, 96, 128])
MAX_NOTES_LEFT, MAX_BARS_LEFT = int(_NOTES_LEFT_EDGES[-1]), int(_BARS_LEFT_EDGES[-1])
# The class of each number of notes or bars left, larger ones counting as the last.
NOTES_LEFT_CLASS = (1 + np.searchsorted(_NOTES_LEFT_EDGES, np.arange(MAX_NOTES_LEFT + 1), side="right")).astype(np.int64)
BARS_LEFT_CLASS = (1 + np.searchsorted(_BARS_LEFT_EDGES, np.arange(MAX_BARS_LEFT + 1), side="right")).astype(np.int64)
NOTES_LEFT_CLASSES, BARS_LEFT_CLASSES = int(NOTES_LEFT_CLASS[-1]) + 1, int(BARS_LEFT_CLASS[-1]) + 1


def tempo_class(index: int) -> int:
    """Return the index into TEMPO_CLASSES of a tempo index of the vocabulary."""
    return 1 + int(np.abs(_TEMPO_INDICES - index).argmin())


def key_and_tempo(tokens: TokenArray) -> tuple[int, int]:
    """Return the key (0..23) that the opening of tokens (N, F) fits best, and its median tempo as an index of the vocabulary."""
    is_note = tokens[:, FIELDS.index("hand")] != CONTROL
    opening = tokens[: np.searchsorted(np.cumsum(is_note), OPENING) + 1]
    tempos = opening[opening[:, FIELDS.index("hand")] != CONTROL, FIELDS.index("tempo")]
    return estimate_key(decode_tokens(opening).notes).key, int(np.median(tempos))


def notes_left_class(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the class of each number of notes left; a negative one counts as none."""
    classes: NDArray[np.int64] = NOTES_LEFT_CLASS[counts.clip(0, MAX_NOTES_LEFT)]
    return classes


def bars_left_class(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the class of each number of bars left; a negative one counts as none."""
    classes: NDArray[np.int64] = BARS_LEFT_CLASS[counts.clip(0, MAX_BARS_LEFT)]
    return classes


def notes_left(tokens: TokenArray) -> NDArray[np.int64]:
    """Return the class of the notes left at each token (N, F), its own counted."""
    is_note = tokens[:, FIELDS.index("hand")] != CONTROL
    left = is_note[::-1].cumsum()[::-1]
    return notes_left_class(left)


def bars_left(piece: EncodedPiece) -> NDArray[np.int64]:
    """Return the class of the bars left before each token: barlines from the token before it to that at or after the piece's end.

    A bar of a metre that is none of TIME_SIGNATURES counts as a 4/4 one where several pass between two tokens.
    """
    before = np.concatenate([[piece.start_position], piece.positions[:-1]])
    passed = before + piece.tokens[:, 0] - piece.positions
    bars = BAR_TICKS[piece.metres]
    crossed = np.where(passed > 0, np.maximum(1, np.round(passed / np.where(bars, bars, 4 * RESOLUTION))), 0).astype(np.int64)
    bar = np.cumsum(crossed)
    last = bar[-1] + (piece.positions[-1] > 0)
    left = last - np.concatenate([[0], bar[:-1]])
    return bars_left_class(left)
