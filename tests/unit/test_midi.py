"""MIDI bytes to pieces and back. The files read here are written out byte by byte, so that each test shows what it reads."""

import io
import warnings

import mido
import numpy as np
import pytest
import symusic
from hypothesis import given
from hypothesis import strategies as st

from service.errors import InvalidMusic
from service.music.midi import MAX_BEATS, read_midi
from service.music.midi_writer import write_midi
from service.music.piece import (
    DEFAULT_QPM,
    NOTE,
    PEDAL,
    RESOLUTION,
    TEMPO,
    Hand,
    KeySignature,
    Piece,
    TimeSignature,
    records,
    sort_notes,
)
from tests.unit.music_strategies import pieces

R, L, U = Hand.RIGHT, Hand.LEFT, Hand.UNKNOWN


def hexdump(text: str) -> bytes:
    """Bytes from lines of hex digits, each with a comment after #."""
    return bytes.fromhex("".join(line.split("#")[0] for line in text.splitlines()))


def midi(*tracks: str, format: int = 1, division: bytes = b"\x00\x18") -> bytes:
    """A file of tracks given as hexdumps without their end-of-track event; 24 ticks per quarter note unless told."""
    header = b"MThd" + (6).to_bytes(4, "big") + format.to_bytes(2, "big") + len(tracks).to_bytes(2, "big") + division
    bodies = [hexdump(track + "\n00 ff 2f 00") for track in tracks]
    return header + b"".join(b"MTrk" + len(body).to_bytes(4, "big") + body for body in bodies)


def rows(piece: Piece) -> list[tuple[int, ...]]:
    """The notes as (time, pitch, duration, velocity, hand)."""
    return piece.notes.tolist()


ONE_NOTE = """
    00 90 3c 40   # middle C, velocity 64
    18 80 3c 00   # off after 24 ticks
"""


def test_format_0_whole_file() -> None:
    data = hexdump("""
        4d 54 68 64  00 00 00 06   # MThd, 6 bytes
        00 00  00 01  00 60        # format 0, one track, 96 ticks per quarter note
        4d 54 72 6b  00 00 00 23   # MTrk, 35 bytes
        00 ff 58 04 03 02 18 08    # 3/4
        00 ff 51 03 09 27 c0       # 600,000 microseconds to the quarter note: 100 per minute
        00 90 3c 40                # middle C on, velocity 64
        60 80 3c 00                # off after 96 ticks
        30 90 43 50                # G on after 48 more
        30 90 43 00                # off: note on with velocity 0
        00 ff 2f 00                # end of track
    """)
    piece = read_midi(data)
    assert rows(piece) == [(0, 60, 24, 64, U), (36, 67, 12, 80, U)]
    assert piece.tempos.tolist() == [(0, 100.0)]
    assert piece.time_signatures == (TimeSignature(0, 3, 4),)
    assert piece.pickup == 0


def test_running_status() -> None:
    track = """
        00 90 3c 40   # C on
        00 40 41      # E on, the status byte is still 90
        18 3c 00      # C off
        00 40 00      # E off
    """
    assert rows(read_midi(midi(track))) == [(0, 60, 24, 64, U), (0, 64, 24, 65, U)]


@pytest.mark.parametrize(
    ("division", "ticks", "onset"),
    [
        ("00 60", "60", 24),  # 96 to the quarter note: a quarter
        ("00 07", "07", 24),  # 7, odd
        ("00 07", "03", 10),  # 3/7 of 24 is 10.29
        ("00 07", "04", 14),  # 4/7 of 24 is 13.71
        ("01 e0", "0a", 1),  # 10 of 480 is half a tick: upwards
        ("01 e0", "09", 0),
        ("7f ff", "81 ff 7f", 24),  # 32767, the finest there is
    ],
)
def test_any_resolution_is_rounded_to_the_nearest_tick(division: str, ticks: str, onset: int) -> None:
    track = f"{ticks} 90 3c 40 \n {ticks} 80 3c 00"
    assert read_midi(midi(track, division=hexdump(division))).notes["time"] == [onset]


def test_tempo_and_metre_changes() -> None:
    track = """
        00 ff 51 03 07 a1 20      # 120
        00 ff 58 04 04 02 18 08   # 4/4
        00 90 3c 40
        60 80 3c 00               # a bar later
        00 ff 51 03 0f 42 40      # 60
        00 ff 58 04 06 03 18 08   # 6/8
        30 ff 51 03 0f 42 40      # 60 again: no change
        00 ff 58 04 06 03 18 08   # 6/8 again
        18 ff 51 03 03 d0 90      # 240
        00 ff 51 03 07 a1 20      # no, 120: the last one at a tick holds
    """
    piece = read_midi(midi(track))
    assert piece.tempos.tolist() == [(0, 120.0), (96, 60.0), (168, 120.0)]
    assert piece.time_signatures == (TimeSignature(0, 4, 4), TimeSignature(96, 6, 8))


def test_a_tempo_between_two_ticks_leaves_the_note_before_it_alone() -> None:
    # 480 to the quarter note, 20 to a tick of ours; tempos 2 after the first note and 5 before the third.
    track = """
        00    90 3c 40
        02    ff 51 03 0f 42 40   # 60 at 2: from tick 1 on
        7e    80 3c 00
        83 5b ff 51 03 07 a1 20   # 120 at 603: from tick 31 on
        01    90 3e 40            # at 604: tick 30
        81 00 80 3e 00
        83 10 ff 51 03 03 d0 90   # 240 at 1132, with a note: both go to tick 57
        00    90 40 40
        18    80 40 00
    """
    piece = read_midi(midi(track, division=b"\x01\xe0"))
    assert piece.tempos.tolist() == [(1, 60.0), (31, 120.0), (57, 240.0)]
    assert piece.notes["time"].tolist() == [0, 30, 57]
    assert piece.tempo_at(piece.notes["time"]).tolist() == [DEFAULT_QPM, 60.0, 240.0]


def test_tempos_keep_their_order_on_the_grid() -> None:
    track = """
        02 ff 51 03 0f 42 40   # 60, two of 20 after tick 0
        02 ff 51 03 07 a1 20   # 120, with a note that goes to tick 0
        00 90 3c 40
        10 80 3c 00
    """
    assert read_midi(midi(track, division=b"\x01\xe0")).tempos.tolist() == [(0, 120.0)]


def test_a_late_first_metre_follows_common_time() -> None:
    piece = read_midi(midi("60 ff 58 04 03 02 18 08" + ONE_NOTE))
    assert piece.time_signatures == (TimeSignature(0, 4, 4), TimeSignature(96, 3, 4))
    assert read_midi(midi("60 ff 58 04 04 02 18 08" + ONE_NOTE)).time_signatures == (TimeSignature(0, 4, 4),)


SHORT_FIRST_BAR = """
    00 ff 58 04 01 02 18 08   # 1/4
    18 ff 58 04 03 02 18 08   # 3/4 from the second quarter note on
"""


def test_a_short_first_bar_is_a_pickup() -> None:
    piece = read_midi(midi(SHORT_FIRST_BAR + ONE_NOTE))
    assert piece.time_signatures == (TimeSignature(0, 3, 4),)
    assert piece.pickup == RESOLUTION


def test_two_short_bars_are_no_pickup() -> None:
    piece = read_midi(midi("00 ff 58 04 01 02 18 08 \n 30 ff 58 04 03 02 18 08" + ONE_NOTE))
    assert piece.time_signatures == (TimeSignature(0, 1, 4), TimeSignature(48, 3, 4))
    assert piece.pickup == 0


def test_a_pickup_that_the_caller_knows() -> None:
    data = midi("00 ff 58 04 03 02 18 08" + ONE_NOTE)
    assert read_midi(data, pickup_beats=0.5).pickup == 12
    assert read_midi(data, pickup_beats=3.0).pickup == 0  # a whole bar


def test_overlapping_notes_of_one_key_end_first_in_first_out() -> None:
    track = """
        00 90 3c 40   # C on
        0c 90 3c 50   # C again, while it sounds
        0c 80 3c 00   # ends the first
        0c 80 3c 00   # ends the second
    """
    assert rows(read_midi(midi(track))) == [(0, 60, 24, 64, U), (12, 60, 24, 80, U)]


def test_a_note_without_length_lasts_one_tick() -> None:
    assert rows(read_midi(midi("00 90 3c 40 \n 00 80 3c 00"))) == [(0, 60, 1, 64, U)]


def test_a_hanging_note_ends_with_its_track() -> None:
    track = """
        00 90 3c 40   # never ended
        0c 90 40 40
        0c 80 40 00
        18 ff 01 00   # an empty text, 48 ticks from the start
    """
    assert rows(read_midi(midi(track))) == [(0, 60, 48, 64, U), (12, 64, 12, 64, U)]


def test_a_note_off_without_its_note_is_nothing() -> None:
    assert rows(read_midi(midi("00 80 3c 00" + ONE_NOTE))) == [(0, 60, 24, 64, U)]


def test_drums_are_ignored() -> None:
    track = """
        00 99 24 7f   # bass drum on channel 10
        00 b9 40 7f   # and its pedal
        18 89 24 00
    """
    piece = read_midi(midi(track, ONE_NOTE.replace("18", "0c")))
    assert rows(piece) == [(0, 60, 12, 64, U)]
    assert len(piece.pedals) == 0


def test_a_file_without_notes_is_a_piece_without_notes() -> None:
    assert len(read_midi(midi("")).notes) == 0


def test_velocities_above_127_are_clipped() -> None:
    assert rows(read_midi(midi("00 90 3c ff \n 18 80 3c 00")))[0][3] == 127


def test_pedal_changes_only() -> None:
    track = """
        00 b0 40 00   # up, as it was
        0c b0 40 50   # down
        00 b0 40 7f   # further down
        0c b0 40 3f   # up: below 64
        00 b0 40 00
        0c b0 43 7f   # the soft pedal is another controller
    """
    assert read_midi(midi(track + ONE_NOTE)).pedals.tolist() == [(12, True), (24, False)]


def test_one_pedal_written_into_two_tracks() -> None:
    # Lifted and pressed again within one tick of our grid (at 480 to the quarter note, 20 to a tick), in both hands' tracks.
    track = """
        00    b0 40 7f
        83 60 b0 40 00   # after 480
        05    b0 40 7f   # five later
        83 5b b0 40 00
    """
    piece = read_midi(midi(track, track.replace("b0", "b1"), division=b"\x01\xe0"))
    assert piece.pedals.tolist() == [(0, True), (24, False), (24, True), (48, False)]


def test_a_pedal_let_go_in_another_track() -> None:
    piece = read_midi(midi("00 b0 40 7f \n 30 b0 40 00", "18 b0 40 00"))
    assert piece.pedals.tolist() == [(0, True), (24, False)]


def named(name: str) -> str:
    """A track name event."""
    data = name.encode("utf-8")
    return f"00 ff 03 {len(data):02x} {data.hex()}\n"


HIGH_NOTE, LOW_NOTE = "00 90 48 40 \n 18 80 48 00", "00 91 30 40 \n 18 81 30 00"


@pytest.mark.parametrize(
    ("right", "left"),
    [
        ("right hand", "left hand"),
        ("Piano (RIGHT)", "Piano (LEFT)"),
        ("R.H.", "L.H."),
        ("Mano derecha", "Mano izquierda"),
        ("m.d.", "m.i."),
        ("rechte Hand", "linke Hand"),
        ("upper staff", "lower staff"),
    ],
)
@pytest.mark.parametrize("crossed", [False, True])
def test_hands_by_name_even_if_they_cross(right: str, left: str, crossed: bool) -> None:
    notes = (LOW_NOTE, HIGH_NOTE) if crossed else (HIGH_NOTE, LOW_NOTE)
    piece = read_midi(midi("", named(right) + notes[0], named(left) + notes[1]))
    assert piece.notes["hand"].tolist() == ([R, L] if crossed else [L, R])


def test_hands_by_pitch_where_two_tracks_or_channels_play() -> None:
    for data in (midi("", LOW_NOTE, HIGH_NOTE), midi("", HIGH_NOTE, LOW_NOTE), midi(LOW_NOTE + "\n" + HIGH_NOTE, format=0)):
        assert read_midi(data).notes["hand"].tolist() == [L, R]


def test_hands_unknown_with_one_part_or_three() -> None:
    third = "00 92 3c 40 \n 18 82 3c 00"
    assert set(read_midi(midi(HIGH_NOTE)).notes["hand"]) == {U}
    assert set(read_midi(midi(HIGH_NOTE, LOW_NOTE, third)).notes["hand"]) == {U}


def test_hands_as_the_caller_knows_them() -> None:
    data = midi("", named("right hand") + HIGH_NOTE, LOW_NOTE)
    assert read_midi(data, {1: L, 2: R}).notes["hand"].tolist() == [R, L]
    assert read_midi(data, {1: L}).notes["hand"].tolist() == [U, L]


def test_a_title_that_speaks_of_a_hand_names_no_hand() -> None:
    piece = read_midi(midi(named("Prelude for the left hand"), HIGH_NOTE, LOW_NOTE))
    assert piece.title == "Prelude for the left hand"
    assert piece.notes["hand"].tolist() == [L, R]


def test_texts() -> None:
    copyright = "© José".encode("latin1")
    track = named("Año nuevo") + f"00 ff 02 {len(copyright):02x} {copyright.hex()}\n"
    piece = read_midi(midi(track, named("right hand") + ONE_NOTE))
    assert piece.title == "Año nuevo"  # UTF-8
    assert piece.copyright == "© José"  # latin-1
    assert read_midi(midi(named("right hand") + ONE_NOTE)).title == ""


def test_keys() -> None:
    track = """
        00 ff 59 02 fd 01   # three flats, minor: C minor
        18 ff 59 02 03 00   # three sharps, major: A major
    """
    keys = read_midi(midi(track + ONE_NOTE)).key_signatures
    assert keys == (KeySignature(0, -3, True), KeySignature(24, 3, False))


META_EVENTS = ("ff 51 03 07 a1 20", "ff 58 04 03 02 18 08", "ff 59 02 01 00")  # tempo, metre, key


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "does not begin with MThd"),
        (b"RIFF" + bytes(20), "does not begin with MThd"),
        (b"MThd", "broken"),
        (midi(ONE_NOTE)[:-6], "ends too early"),
        (midi(ONE_NOTE, division=b"\xe2\x28"), "frames per second"),  # SMPTE: 30 frames of 40 ticks
        (midi(ONE_NOTE, division=b"\x00\x00"), "no ticks"),
        (midi(ONE_NOTE, format=2), "format must be 0 or 1; got 2"),
        (midi("ff ff ff 7f 90 3c 40 \n 18 80 3c 00", division=b"\x00\x01"), f"longer than {MAX_BEATS} quarter notes"),
        (midi("00 90 3c 40 \n 00 b0 40 7f \n ff ff ff 7f b0 40 00", division=b"\x00\x01"), "longer than"),
        *((midi(f"{ONE_NOTE} \n {'ff ' * size} 7f {event}"), "longer than") for size in (9, 200) for event in META_EVENTS),
    ],
)
def test_what_cannot_be_read_is_refused_with_a_reason(data: bytes, reason: str) -> None:
    with pytest.raises(InvalidMusic, match=reason):
        read_midi(data)


def read_or_refuse(data: bytes) -> None:
    try:
        piece = read_midi(data)
    except InvalidMusic:
        return
    assert (piece.notes["duration"] > 0).all()


@given(st.binary(max_size=200))
def test_random_bytes_are_read_or_refused(data: bytes) -> None:
    read_or_refuse(data)
    read_or_refuse(b"MThd\x00\x00\x00\x06\x00\x01\x00\x01\x00\x60MTrk\x00\x00\x00\xa0" + data)


@given(piece=pieces(), data=st.data())
def test_broken_files_are_read_or_refused(piece: Piece, data: st.DataObject) -> None:
    whole = bytearray(write_midi(piece))
    for at in data.draw(st.lists(st.integers(4, len(whole) - 1), max_size=5)):
        whole[at] = data.draw(st.integers(0, 255))
    read_or_refuse(bytes(whole[: data.draw(st.integers(0, len(whole)))]))
    read_or_refuse(bytes(whole))


@given(piece=pieces())
def test_what_is_written_is_read_again(piece: Piece) -> None:
    again = read_midi(write_midi(piece))
    np.testing.assert_array_equal(again.notes, piece.notes)
    assert again.time_signatures == piece.time_signatures
    assert again.pickup == piece.pickup
    assert again.key_signatures == piece.key_signatures
    assert (again.title, again.copyright) == (piece.title, piece.copyright)
    every_tick = np.arange(piece.end + 200)
    np.testing.assert_allclose(again.tempo_at(every_tick), piece.tempo_at(every_tick), rtol=1e-12)
    let_go = again.pedals[len(piece.pedals) :]
    np.testing.assert_array_equal(again.pedals[: len(piece.pedals)], piece.pedals)
    held = len(piece.pedals) > 0 and piece.pedals["down"][-1]
    assert let_go.tolist() == ([(max(piece.end, piece.pedals["time"][-1]), False)] if held else [])
    assert write_midi(again) == write_midi(piece) or held  # the release of a held pedal is the only thing added


@given(piece=pieces())
def test_no_note_is_left_hanging_and_no_key_is_struck_twice(piece: Piece) -> None:
    file = mido.MidiFile(file=io.BytesIO(write_midi(piece)))
    assert file.type == 1
    sounding = set()
    for message in mido.merge_tracks(file.tracks):
        if message.type in ("note_on", "note_off"):
            assert message.channel != 9
            key = message.channel, message.note
            if message.type == "note_on":
                assert message.velocity > 0
                assert key not in sounding
                sounding.add(key)
            else:
                sounding.remove(key)
    assert not sounding


def test_more_notes_on_one_key_than_channels() -> None:
    notes = sort_notes(records(NOTE, [(i, 60, 100, 64, R) for i in range(14)]))
    assert len(read_midi(write_midi(Piece(notes[:13]))).notes) == 13
    with pytest.raises(InvalidMusic, match="more than 13 notes hold the key 60 at tick 13"):
        write_midi(Piece(notes))


def test_notes_of_no_known_hand_keep_that_though_they_overlap() -> None:
    notes = records(NOTE, [(0, 60, 48, 64, U), (24, 60, 48, 64, U)])
    assert read_midi(write_midi(Piece(notes))).notes["hand"].tolist() == [U, U]


def test_a_pickup_that_midi_cannot_name_leaves_the_metre_as_it_is() -> None:
    piece = Piece(records(NOTE, [(0, 60, 24, 64, R)]), time_signatures=(TimeSignature(0, 3, 4),), pickup=8)
    again = read_midi(write_midi(piece))
    assert again.time_signatures == piece.time_signatures
    assert again.pickup == 0


SONG_NOTES = [
    (0, 67, 12, 80, R),
    (12, 48, 72, 60, L),
    (12, 72, 36, 90, R),
    (12, 72, 12, 33, L),  # the same key in both hands
    (48, 71, 30, 70, R),
    (78, 60, 1, 5, U),
]
SONG = Piece(
    records(NOTE, SONG_NOTES),
    records(TEMPO, [(0, 100.0), (48, 96.0)]),
    records(PEDAL, [(12, True), (60, False)]),
    (TimeSignature(0, 3, 4), TimeSignature(84, 4, 4)),
    (KeySignature(0, -3, True),),
    pickup=12,
    title="Nocturne",
    copyright="CC BY 4.0, somebody",
)


def test_written_file_in_mido() -> None:
    file = mido.MidiFile(file=io.BytesIO(write_midi(SONG)))
    assert file.type == 1
    assert [track.name for track in file.tracks] == ["Nocturne", "right hand", "left hand", "piano"]
    conductor = [message for message in file.tracks[0] if message.is_meta]
    assert [m.text for m in conductor if m.type == "copyright"] == ["CC BY 4.0, somebody"]
    assert [(m.numerator, m.denominator) for m in conductor if m.type == "time_signature"] == [(1, 8), (3, 4), (4, 4)]
    assert [m.key for m in conductor if m.type == "key_signature"] == ["Cm"]
    assert [m.tempo for m in conductor if m.type == "set_tempo"] == [600_000, 625_000]
    for track in file.tracks[1:]:
        assert [(m.control, m.value) for m in track if m.type == "control_change"] == [(64, 127), (64, 0)]
    assert all(track[-1].type == "end_of_track" for track in file.tracks)
    assert file.length == pytest.approx(SONG.seconds())


def test_written_file_in_pretty_midi() -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning)  # at its import, about pkg_resources
        import pretty_midi
    file = pretty_midi.PrettyMIDI(io.BytesIO(write_midi(SONG)))
    notes = [note for instrument in file.instruments for note in instrument.notes]
    ticks = sorted((file.time_to_tick(n.start) // 20, n.pitch, file.time_to_tick(n.end) // 20, n.velocity) for n in notes)
    assert ticks == sorted((time, pitch, time + duration, velocity) for time, pitch, duration, velocity, _ in rows(SONG))
    times, tempos = file.get_tempo_changes()
    np.testing.assert_allclose(tempos, [100, 96])
    np.testing.assert_allclose(times, [0, 2 * 0.6])
    assert [(s.numerator, s.denominator) for s in file.time_signature_changes] == [(1, 8), (3, 4), (4, 4)]
    assert {instrument.program for instrument in file.instruments} == {0}
    assert not any(instrument.is_drum for instrument in file.instruments)


def test_written_file_in_symusic() -> None:
    score = symusic.Score.from_midi(write_midi(SONG))
    assert score.ticks_per_quarter == 20 * RESOLUTION
    notes = [(n.time // 20, n.pitch, n.duration // 20, n.velocity) for track in score.tracks for n in track.notes]
    assert sorted(notes) == sorted(row[:4] for row in rows(SONG))
    assert {track.name for track in score.tracks} >= {"right hand", "left hand", "piano"}
    assert [(s.time // 20, s.numerator, s.denominator) for s in score.time_signatures] == [(0, 1, 8), (12, 3, 4), (84, 4, 4)]
    assert [(t.time // 20, round(t.qpm, 6)) for t in score.tempos] == [(0, 100.0), (48, 96.0)]
    for track in score.tracks:  # not `track.pedals`: symusic 0.6 pairs those wrongly on all channels but the first
        assert [(c.time // 20, c.number, c.value) for c in track.controls] == [(12, 64, 127), (60, 64, 0)]


def test_every_track_with_notes_has_the_pedal_and_it_is_let_go() -> None:
    piece = Piece(records(NOTE, [(0, 40, 48, 64, L), (0, 60, 48, 64, R)]), pedals=records(PEDAL, [(24, True)]))
    for track in mido.MidiFile(file=io.BytesIO(write_midi(piece))).tracks[1:]:
        now, pedal = 0, []
        for message in track:
            now += message.time
            if message.type == "control_change":
                pedal.append((now // 20, message.control, message.value))
        assert pedal == [(24, 64, 127), (48, 64, 0)]


def test_every_track_can_end_after_the_last_note() -> None:
    piece = Piece(records(NOTE, [(0, 60, 24, 64, R)]), pedals=records(PEDAL, [(0, True)]))
    for end, expected in ((0, 24), (24, 24), (96, 96)):
        tracks = mido.MidiFile(file=io.BytesIO(write_midi(piece, end))).tracks
        assert [sum(message.time for message in track) for track in tracks] == [20 * expected] * 3
        assert read_midi(write_midi(piece, end)).pedals.tolist() == [(0, True), (expected, False)]


def test_without_a_tempo_it_says_midis_own() -> None:
    file = mido.MidiFile(file=io.BytesIO(write_midi(Piece(records(NOTE, [(0, 60, 24, 64, R)])))))
    tempos = [m.tempo for m in file.tracks[0] if m.type == "set_tempo"]
    assert tempos == [mido.bpm2tempo(DEFAULT_QPM)]


@given(piece=pieces())
def test_other_readers_find_the_same_notes(piece: Piece) -> None:
    score = symusic.Score.from_midi(write_midi(piece))
    found = sorted((n.time, n.pitch, n.duration, n.velocity) for track in score.tracks for n in track.notes)
    expected = sorted((time * 20, pitch, duration * 20, velocity) for time, pitch, duration, velocity, _ in rows(piece))
    assert found == expected
