"""Music heard wrong: what may change, what must not, and that the target leads back."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.music.representation import FIELDS, MAX_SHIFT, EncodedPiece, encode_piece, is_note
from tests.training.conftest import make_piece
from tests.unit.music_strategies import pieces
from training.batches import prepare_piece
from training.memory import BAR_TICKS
from training.mishear import MOST_SEMITONES, MOST_TICKS, mishear

PITCH = FIELDS.index("pitch")


def check(piece: EncodedPiece, share: float, seed: int) -> None:
    heard = mishear(piece, share, np.random.default_rng(seed))
    tokens, target = piece.tokens, heard.target
    others = [i for i in range(len(FIELDS)) if i not in (0, PITCH)]
    assert (heard.tokens[:, others] == tokens[:, others]).all()
    assert (target[:, 1:] == tokens[:, 1:]).all(), "what is to be drawn is the music, but for the shifts"
    assert (np.abs(heard.tokens[:, PITCH] - tokens[:, PITCH]) <= MOST_SEMITONES).all()
    for shifts in (heard.tokens[:, 0], target[:, 0]):
        assert ((shifts == 0) == (tokens[:, 0] == 0)).all(), "chords stay chords"
        assert shifts.max(initial=0) <= MAX_SHIFT
    for before, after in pairwise(range(len(tokens))):
        if tokens[after, 0] == 0 and is_note(tokens[[before, after]]).all() and tokens[before, PITCH] < tokens[after, PITCH]:
            assert heard.tokens[before, PITCH] < heard.tokens[after, PITCH]
    times, heard_times = np.cumsum(tokens[:, 0]), np.cumsum(heard.tokens[:, 0])
    assert (np.abs(heard_times - times) <= MOST_TICKS).all()
    # Where an onset begins, the target is where it should be, whatever was heard before.
    due = np.concatenate([[0], heard_times[:-1]]) + target[:, 0]
    assert (due == np.where(tokens[:, 0] > 0, times, heard_times)).all()
    assert (heard.positions - piece.positions == heard_times - times).all()
    assert (heard.target_positions - piece.positions == due - times).all()
    bars = BAR_TICKS[piece.metres]
    assert (heard.positions >= 0).all()
    assert (heard.positions < np.maximum(bars, piece.positions + 1)).all(), "an onset stays in its bar"


@given(pieces(), st.floats(0, 1), st.integers(0, 1000))
def test_wild_pieces(piece, share, seed) -> None:
    check(encode_piece(piece), share, seed)


@pytest.mark.parametrize("seed", range(4))
def test_tunes(seed: int) -> None:
    piece = encode_piece(make_piece(seed, bars=40))
    check(piece, 0.5, seed)
    heard = mishear(piece, 0.5, np.random.default_rng(seed))
    assert (heard.tokens[:, PITCH] != piece.tokens[:, PITCH]).mean() > 0.1
    assert (heard.positions != piece.positions).mean() > 0.1


def test_nothing_is_heard_wrong_without_a_share() -> None:
    piece = encode_piece(make_piece(1))
    heard = mishear(piece, 0.0, np.random.default_rng(0))
    assert (heard.tokens == piece.tokens).all()
    plain, same = prepare_piece(piece, 20), prepare_piece(piece, 20, heard=heard)
    for name, column in vars(plain).items():
        assert (column == vars(same)[name]).all(), name
