"""Music heard wrong, so that the network learns to go on well after a mistake of its own.

In training a network hears real music only; when it composes, it hears itself, and what is a little wrong once makes the next
note a little stranger: a wrong note pulls the key away, an onset off the beat leaves all that follow off the beat. So some notes
of some plays are heard with another pitch, and some onsets a little early or late, while what is to be drawn stays the music as
it was: after an onset that came too late, the shift that leads back to the beat. (The idea of learning from one's own mistakes:
S. Bengio and others, Scheduled sampling for sequence prediction with recurrent neural networks, NIPS 2015; the mistakes here are
random, not the network's own, which would need a second pass.)
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.music.representation import CONTROL, FIELDS, MAX_SHIFT, VOCABULARY, Control, EncodedPiece, TokenArray
from training.memory import BAR_TICKS

MOST_SEMITONES = 5
MOST_TICKS = 3
_PITCH = FIELDS.index("pitch")


class Misheard(NamedTuple):
    """A piece as it is heard, and as it should go on after each token heard; N tokens."""

    tokens: TokenArray  # (N, F): what is heard
    positions: NDArray[np.int32]  # (N,): ticks since the barline at each token heard
    target: TokenArray  # (N, F): what should be drawn after the tokens heard before it
    target_positions: NDArray[np.int32]  # (N,)


def mishear(piece: EncodedPiece, share: float, rng: np.random.Generator) -> Misheard:
    """Return a piece with about so many of its pitches, and of its onsets, heard wrong.

    Parameters
    ----------
    piece : EncodedPiece
    share : float
        0..1. Fewer are changed, since a chord stays a chord in ascending order, onsets keep their order and their bar, and tokens
        at one onset stay together.
    rng : Generator
    """
    delay = _delays(piece, share, rng)
    tokens, target = piece.tokens.copy(), piece.tokens.copy()
    times = np.cumsum(piece.tokens[:, 0], dtype=np.int64)
    heard = times + delay
    tokens[:, 0] = np.diff(heard, prepend=0)
    tokens[:, _PITCH] = _pitches(piece.tokens, share, rng)
    # Within a chord all go with its first token, also what is still to come of it.
    along = piece.tokens[:, 0] == 0
    due = np.where(along, heard, times)
    target[:, 0] = due - np.concatenate([[0], heard[:-1]])
    positions = piece.positions + delay
    return Misheard(
        tokens, positions.astype(np.int32), target, np.where(along, positions, piece.positions).astype(piece.positions.dtype)
    )


def _delays(piece: EncodedPiece, share: float, rng: np.random.Generator) -> NDArray[np.int64]:
    """Return by how many ticks each token is heard late; negative: early."""
    shifts = piece.tokens[:, 0].astype(np.int64)
    group = np.cumsum(shifts > 0)
    first = np.flatnonzero(np.diff(group, prepend=-1))  # of each onset
    gap = shifts[first]
    gap[0] = 0  # the first onset stays where it is
    gap[gap > MAX_SHIFT - 2 * MOST_TICKS] = 0  # a shift must not become longer than there are
    room = (np.minimum(gap, np.append(gap[1:], 0)) - 1) // 2  # half of the gap on either side, so that no two can meet
    position, bar = piece.positions[first], BAR_TICKS[piece.metres[first]]
    most = np.minimum(room, MOST_TICKS)
    early, late = np.minimum(most, position), np.minimum(most, np.maximum(bar - 1 - position, 0))
    chosen = (rng.random(len(first)) < share) & (early + late > 0)
    delay = rng.integers(-early.clip(0), late.clip(0) + 1)
    delays: NDArray[np.int64] = np.where(chosen, delay, 0)[group - group[0]]
    return delays


def _pitches(tokens: TokenArray, share: float, rng: np.random.Generator) -> NDArray[np.int32]:
    """Return the pitch of each token as it is heard."""
    pitches = tokens[:, _PITCH]
    is_note = tokens[:, FIELDS.index("hand")] != CONTROL
    joined = tokens[1:, 0] == 0  # to the token before
    lowest, highest = np.full(len(pitches), len(Control)), np.full(len(pitches), VOCABULARY.pitch - 1)
    lowest[1:] = np.where(joined & is_note[:-1], pitches[:-1] + 1, lowest[1:])
    highest[:-1] = np.where(joined, pitches[1:] - 1, highest[:-1])
    change = rng.integers(1, MOST_SEMITONES + 1, len(pitches)) * rng.choice([-1, 1], len(pitches))
    wrong = pitches + change
    chosen = (rng.random(len(pitches)) < share) & is_note & (wrong >= lowest) & (wrong <= highest)
    # Of two neighbours in a chord only one changes: each was given the room that the other leaves as it is.
    chosen[1:] &= ~(chosen[:-1] & joined)
    return np.where(chosen, wrong, pitches).astype(tokens.dtype)
