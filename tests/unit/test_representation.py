"""Notes to tokens and back: by hand, and the bounds of the round trip on random pieces."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import InvalidMusic
from service.music.piece import NOTE, PEDAL, TEMPO, Hand, KeySignature, Piece, TimeSignature, bar_positions, records
from service.music.representation import (
    DURATIONS,
    FIELDS,
    MAX_BAR,
    MAX_SHIFT,
    START,
    TEMPOS,
    TIME_SIGNATURES,
    VELOCITIES,
    VOCABULARY,
    Control,
    NoteToken,
    decode_tokens,
    encode_notes,
    encode_piece,
    is_note,
    tempo_index,
    time_signature_index,
)
from tests.unit.music_strategies import pieces

R, L = Hand.RIGHT, Hand.LEFT
AT_120 = int(tempo_index(np.array([120.0]))[0])


def notes_of(*rows: tuple[int, int, int, int, int]) -> np.ndarray:
    return records(NOTE, rows)


def test_a_chord_and_a_melody_note_by_hand() -> None:
    tokens = encode_notes(notes_of((0, 48, 48, 66, L), (0, 64, 24, 66, R), (24, 65, 24, 70, R)))
    assert [NoteToken(*row) for row in tokens.tolist()] == [
        NoteToken(shift=0, hand=L, pitch=48 - 16, duration=48, velocity=17, tempo=AT_120),
        NoteToken(shift=0, hand=R, pitch=64 - 16, duration=24, velocity=17, tempo=AT_120),
        NoteToken(shift=24, hand=R, pitch=65 - 16, duration=24, velocity=18, tempo=AT_120),
    ]
    assert tokens.dtype == np.int32


def test_controls_stand_before_the_notes_of_their_tick_and_the_end_stands_last() -> None:
    piece = Piece(notes_of((12, 60, 24, 64, R), (12, 67, 36, 64, R)), pedals=records(PEDAL, [(12, True), (48, False)]), pickup=0)
    tokens = encode_piece(piece).tokens
    assert tokens[:, :3].tolist() == [
        [12, 0, Control.PEDAL_DOWN],
        [0, R, 60 - 16],
        [0, R, 67 - 16],
        [36, 0, Control.PEDAL_UP],
        [0, 0, Control.END],  # the last note ends at 48, as the pedal does
    ]
    assert (tokens[~is_note(tokens), 3:] == 0).all()


def test_the_end_waits_for_the_last_note_and_the_last_pedal() -> None:
    notes = notes_of((0, 60, 100, 64, R), (10, 60, 10, 64, R))
    assert encode_piece(Piece(notes)).tokens[:, 0].sum() == 100
    assert encode_piece(Piece(notes, pedals=records(PEDAL, [(0, True), (130, False)]))).tokens[:, 0].sum() == 130


@pytest.mark.parametrize(
    ("rest", "shifts"),
    [
        (MAX_SHIFT, [MAX_SHIFT]),
        (MAX_SHIFT + 1, [MAX_SHIFT, 1]),
        (2 * MAX_SHIFT, [MAX_SHIFT, MAX_SHIFT]),
        (3 * MAX_SHIFT + 5, [MAX_SHIFT, MAX_SHIFT, MAX_SHIFT, 5]),
    ],
)
def test_long_rests_become_waits(rest: int, shifts: list[int]) -> None:
    tokens = encode_notes(notes_of((0, 60, 1, 64, R), (rest, 62, 1, 64, R)))
    assert tokens[1:, 0].tolist() == shifts
    assert tokens[1:-1, 2].tolist() == [Control.WAIT] * (len(shifts) - 1)
    assert decode_tokens(tokens).notes["time"].tolist() == [0, rest]


def test_start_is_all_zeros_and_every_control_has_its_place() -> None:
    assert START == (0,) * len(FIELDS)
    assert Control.START == 0
    assert VOCABULARY.pitch == len(Control) + 88


def test_bins_keep_the_bounds() -> None:
    assert DURATIONS[1:193].tolist() == list(range(1, 193))  # exact up to eight quarter notes
    assert np.abs(np.arange(1, 128)[:, None] - VELOCITIES[1:]).min(axis=1).max() <= 2
    qpm = np.geomspace(TEMPOS[1], TEMPOS[-1], 5000)
    assert np.abs(TEMPOS[tempo_index(qpm)] / qpm - 1).max() < 0.02
    for exact in (15, 30, 60, 120, 240, 480):
        assert TEMPOS[tempo_index(np.array([exact]))] == pytest.approx(exact)


def test_tempos_out_of_range_take_the_nearest() -> None:
    assert tempo_index(np.array([1.0, 1e6])).tolist() == [1, VOCABULARY.tempo - 1]


def test_durations_beyond_the_longest_are_cut() -> None:
    tokens = encode_notes(notes_of((0, 60, 100_000, 64, R)))
    assert decode_tokens(tokens).notes["duration"] == [DURATIONS[-1]]


def test_the_tempo_goes_with_the_note_that_it_holds_for() -> None:
    tempos = records(TEMPO, [(0, 60.0), (24, 240.0), (30, 30.0)])
    piece = Piece(notes_of((24, 60, 24, 64, R), (24, 64, 24, 64, R), (48, 60, 24, 64, R)), tempos)
    decoded = decode_tokens(encode_piece(piece).tokens)
    assert decoded.tempos["time"].tolist() == [0, 48]  # 60 held no note; the first tempo is put at the start
    np.testing.assert_allclose(decoded.tempos["qpm"], [240, 30])


def test_positions_count_from_the_barline_before() -> None:
    # A quarter of pick-up to 3/4, then from tick 24 + 2 * 72 on 2/4.
    signatures = (TimeSignature(0, 3, 4), TimeSignature(168, 2, 4))
    positions, indices = bar_positions(np.array([0, 12, 24, 95, 96, 167, 168, 216, 220]), signatures, pickup=24)
    assert positions.tolist() == [48, 60, 0, 71, 0, 71, 0, 0, 4]
    assert indices.tolist() == [0] * 6 + [1] * 3


def test_without_a_metre_it_is_common_time() -> None:
    encoded = encode_piece(Piece(notes_of((100, 60, 24, 64, R))))
    assert encoded.positions.tolist() == [4, 28]
    assert [TIME_SIGNATURES[m] for m in encoded.metres] == ["4/4", "4/4"]


def test_encoding_places_each_token_in_its_bar() -> None:
    signatures = (TimeSignature(0, 3, 4), TimeSignature(168, 11, 8))
    piece = Piece(notes_of((0, 60, 24, 64, R), (24, 62, 24, 64, R), (168, 64, 24, 64, R)), time_signatures=signatures, pickup=24)
    encoded = encode_piece(piece)
    assert encoded.start_position == 48
    assert encoded.positions.tolist() == [48, 0, 0, 24]
    assert [TIME_SIGNATURES[m] for m in encoded.metres] == ["3/4", "3/4", "other", "other"]


def test_positions_in_very_long_bars_are_cut() -> None:
    piece = Piece(notes_of((300, 60, 24, 64, R)), time_signatures=(TimeSignature(0, 16, 4),))
    assert encode_piece(piece).positions.max() == MAX_BAR - 1


def test_known_metres_and_others() -> None:
    assert TIME_SIGNATURES[time_signature_index(TimeSignature(99, 6, 8))] == "6/8"
    assert time_signature_index(TimeSignature(0, 17, 16)) == 0


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ((0, 20, 24, 64, R), r"`pitch` must be in 21\.\.108; got 20"),
        ((0, 109, 24, 64, R), r"`pitch` must be in 21\.\.108; got 109"),
        ((0, 60, 0, 64, R), r"`duration` must be at least 1; got 0"),
        ((0, 60, 24, 0, R), r"`velocity` must be in 1\.\.127; got 0"),
        ((0, 60, 24, 128, R), r"`velocity` must be in 1\.\.127; got 128"),
        ((0, 60, 24, 64, 0), r"`hand` must be in 1\.\.3; got 0"),
        ((-1, 60, 24, 64, R), r"`time` must be at least 0; got -1"),
    ],
)
def test_values_outside_the_representation_are_refused(row: tuple[int, int, int, int, int], message: str) -> None:
    with pytest.raises(InvalidMusic, match=message):
        encode_notes(notes_of(row))


def test_notes_out_of_order_are_refused() -> None:
    with pytest.raises(InvalidMusic, match="`time` must ascend"):
        encode_notes(notes_of((5, 60, 24, 64, R), (4, 60, 24, 64, R)))


def test_a_piece_without_notes_is_refused_and_no_notes_are_no_tokens() -> None:
    with pytest.raises(InvalidMusic, match="no notes"):
        encode_piece(Piece(notes_of()))
    assert encode_notes(notes_of()).shape == (0, len(FIELDS))
    assert len(decode_tokens(encode_notes(notes_of())).notes) == 0


def test_what_no_token_carries_is_passed_through() -> None:
    tokens = encode_notes(notes_of((0, 60, 24, 64, R)))
    keys = (KeySignature(0, -3, True),)
    decoded = decode_tokens(tokens, (TimeSignature(0, 3, 4),), 24, keys, title="Walzer", copyright="CC BY")
    assert decoded.time_signatures == (TimeSignature(0, 3, 4),)
    assert (decoded.pickup, decoded.key_signatures, decoded.title, decoded.copyright) == (24, keys, "Walzer", "CC BY")


@given(piece=pieces())
def test_round_trip_bounds(piece: Piece) -> None:
    encoded = encode_piece(piece)
    decoded = decode_tokens(encoded.tokens, piece.time_signatures, piece.pickup)
    before, after = piece.notes, decoded.notes

    assert len(after) == len(before)
    for name in ("time", "pitch", "hand"):
        np.testing.assert_array_equal(after[name], before[name])
    error = np.abs(after["duration"] - np.minimum(before["duration"], DURATIONS[-1]))
    assert (error[before["duration"] <= MAX_SHIFT] == 0).all()
    assert error.max() <= 6
    assert np.abs(after["velocity"] - before["velocity"]).max() <= 2
    ratio = decoded.tempo_at(before["time"]) / piece.tempo_at(before["time"])
    assert np.abs(ratio - 1).max() < 0.02
    np.testing.assert_array_equal(decoded.pedals, piece.pedals)


@given(piece=pieces())
def test_a_second_round_trip_changes_nothing(piece: Piece) -> None:
    encoded = encode_piece(piece)
    again = encode_piece(decode_tokens(encoded.tokens, piece.time_signatures, piece.pickup))
    # All but END, which stands where the last note ends: earlier, if that note was longer than the longest duration.
    np.testing.assert_array_equal(again.tokens[is_note(again.tokens)], encoded.tokens[is_note(encoded.tokens)])
    if piece.notes["duration"].max() <= MAX_SHIFT:
        np.testing.assert_array_equal(again.tokens, encoded.tokens)
        np.testing.assert_array_equal(again.positions, encoded.positions)
        assert again.start_position == encoded.start_position


@given(piece=pieces(longest_rest=5000))
def test_tokens_are_legal_and_end_once(piece: Piece) -> None:
    encoded = encode_piece(piece)
    tokens = encoded.tokens
    assert (tokens >= 0).all()
    assert (tokens < np.array(VOCABULARY)).all()
    played = is_note(tokens)
    assert (tokens[played, 3:] > 0).all()
    assert (tokens[~played, 3:] == 0).all()
    assert (tokens[~played, 2] < len(Control)).all()
    assert (tokens[played, 2] >= len(Control)).all()
    assert np.flatnonzero(~played & (tokens[:, 2] == Control.END)).tolist() == [len(tokens) - 1]
    assert not (~played & (tokens[:, 2] == Control.START)).any()
    assert len(encoded.positions) == len(encoded.metres) == len(tokens)
    assert encoded.positions.min() >= 0
    assert encoded.positions.max() < MAX_BAR


@given(piece=pieces(), data=st.data())
def test_positions_follow_from_the_start_position_and_the_shifts(piece: Piece, data: st.DataObject) -> None:
    """What the model does while it composes: within one metre, a position is the one before plus the shift, modulo the bar."""
    signature = TimeSignature(0, *data.draw(st.sampled_from([(4, 4), (3, 4), (6, 8)])))
    pickup = data.draw(st.integers(0, signature.bar_ticks - 1))
    encoded = encode_piece(Piece(piece.notes, time_signatures=(signature,), pickup=pickup))
    assert encoded.start_position == (-pickup) % signature.bar_ticks
    expected = (encoded.start_position + np.cumsum(encoded.tokens[:, 0])) % signature.bar_ticks
    np.testing.assert_array_equal(encoded.positions, expected)


@given(piece=pieces())
def test_any_prefix_of_tokens_decodes_to_the_same_first_notes(piece: Piece) -> None:
    tokens = encode_piece(piece).tokens
    whole = decode_tokens(tokens).notes
    for length in (0, 1, len(tokens) // 2):
        part = decode_tokens(tokens[:length]).notes
        np.testing.assert_array_equal(part["time"], whole["time"][: len(part)])
        assert len(part) == int(is_note(tokens[:length]).sum())
