import io

import mido
import numpy as np
import pytest

from service.engine.sampling import NOT_TOLD, Composition
from service.errors import InvalidRequest
from service.music.keys import KEY_NAMES
from service.music.midi import read_midi
from service.music.midi_writer import write_midi
from service.music.piece import DEFAULT_QPM, Hand, KeySignature, TimeSignature
from service.music.playable import MAX_STRUCK
from service.music.representation import PITCH_OFFSET, TEMPOS, TIME_SIGNATURES, Control, NoteToken, encode_notes, tempo_index
from service.web.compose import assemble, make_sequence
from service.web.player import Player
from service.web.requests import MAX_NOTES, GenerateRequest

CONDITIONS = {"metre": TIME_SIGNATURES, "key": ("unknown", *KEY_NAMES), "tempo": ("unknown", "60", "100", "160")}
PLAYER = Player("piano", TimeSignature(0, 4, 4), {"metre": 1}, "Music by nobody", CONDITIONS)


def request(seed=(), **fields):
    given = {"temperature": 1.0, "min_p": 0.05, "include_seed": True, "end": True, "random_seed": 42, **fields}
    given |= {} if "bars" in given else {"length": given.get("length", 4)}
    return GenerateRequest.from_fields({**given, "seed": list(seed)} if seed else given, {PLAYER.name: PLAYER})


def note(shift, pitch, duration=12, velocity=17, qpm=DEFAULT_QPM, hand=Hand.RIGHT):
    return NoteToken(shift, hand, pitch - PITCH_OFFSET, duration, velocity, int(tempo_index(np.array([qpm]))[0]))


def control(shift, what):
    return NoteToken(shift, 0, what, 0, 0, 0)


def composition(*tokens, ended=False):
    return Composition(np.array(tokens, np.int32).reshape(-1, 6), ended)


def times(answer):
    return answer.piece.notes[["time", "pitch"]].tolist()


def test_the_sequence_says_what_was_asked_for():
    sequence = make_sequence(request(["C4", "E4"], temperature=0.5, min_p=0.1, end=False, length=9))
    assert (sequence.random_seed, sequence.length, sequence.bar_ticks, sequence.bar_offset) == (42, 9, 96, 0)
    assert (sequence.params.temperature, sequence.params.min_p) == (0.5, 0.1)
    assert (sequence.tell_length, sequence.end_time) == (False, NOT_TOLD)
    assert sequence.conditions == {"metre": 1}
    assert sequence.forced.tolist() == encode_notes(request(["C4", "E4"]).melody).tolist()


def test_a_length_is_told_so_that_the_piece_can_end_with_it():
    sequence = make_sequence(request(["C4"], length=9))
    assert (sequence.length, sequence.tell_length, sequence.end_time) == (9, True, NOT_TOLD)


def test_bars_give_the_tick_of_their_barline_and_as_many_notes_as_there_may_be():
    sequence = make_sequence(request(["C4", "E4"], bars=8, time_signature="3/4"))
    assert (sequence.length, sequence.tell_length, sequence.end_time) == (MAX_NOTES - 2, False, 8 * 72)
    assert (sequence.bar_ticks, sequence.conditions) == (72, {"metre": 2})


def test_composed_notes_are_counted_from_the_last_onset_of_the_melody():
    answer = assemble(request(["C4", "E4"]), composition(note(0, 67), note(12, 72)), PLAYER)
    assert times(answer) == [(0, 60), (12, 64), (12, 67), (24, 72)]
    assert answer.from_seed.tolist() == [True, True, False, False]
    assert answer.notes_composed == 2


def test_the_melody_stands_as_it_was_given_not_as_the_model_hears_it():
    seed = [{"pitch": 60, "duration": 13.21, "velocity": 99, "hand": "left"}]  # neither is the middle of a bin
    melody = request(seed).melody
    answer = assemble(request(seed), composition(note(12, 72)), PLAYER)
    assert answer.piece.notes[answer.from_seed].tolist() == melody.tolist() == [(0, 60, 317, 99, Hand.LEFT)]


def test_of_two_equal_notes_the_first_is_the_melodys():
    answer = assemble(request([{"pitch": 60, "velocity": 66}]), composition(note(0, 60)), PLAYER)
    assert answer.from_seed.tolist() == [True, False]


def test_without_the_melody_the_piece_begins_with_the_bar_of_its_first_note():
    seed = [{"pitch": 60, "start": 4, "duration": 4}]  # the last onset is the start of bar 1 (from 0)
    tokens = (
        control(2, Control.PEDAL_DOWN),
        note(10, 72),
        note(90, 74, qpm=60),
        control(0, Control.PEDAL_UP),
        note(12, 76, qpm=60),
    )
    answer = assemble(request(seed, include_seed=False), composition(*tokens), PLAYER)
    assert times(answer) == [(12, 72), (102, 74), (114, 76)]
    assert not answer.from_seed.any()
    assert answer.piece.tempos.tolist() == [(0, 120.0), (102, 60.0)]
    assert answer.piece.pedals.tolist() == [(2, True), (102, False)]
    late = assemble(request(seed, include_seed=False), composition(control(1, Control.PEDAL_DOWN), note(100, 72)), PLAYER)
    assert times(late) == [(5, 72)]
    assert late.piece.pedals.tolist() == [(0, True)]  # it was pressed before that bar


def test_the_tempo_of_the_melody_is_the_default_one():
    answer = assemble(request(["C4"]), composition(note(12, 72, qpm=60)), PLAYER)
    assert answer.piece.tempos.tolist() == [(0, DEFAULT_QPM), (12, 60.0)]


def test_the_tempo_asked_for_is_the_melodys_and_the_median_of_what_was_composed():
    tokens = [note(12, 72, qpm=qpm) for qpm in (60, 60, 75, 60, 48)]
    asked = request(["C4", "E4"], tempo=100)
    answer = assemble(asked, composition(*tokens), PLAYER)
    assert answer.piece.tempos["time"].tolist() == [0, 48, 60, 72]
    assert answer.piece.tempos["qpm"].tolist() == pytest.approx([100, 125, 100, 80], rel=0.04)
    assert answer.piece.tempo_at(np.array([0, 24, 60])).tolist() == [100, 100, 100]
    sequence = make_sequence(asked)
    assert TEMPOS[sequence.forced[:, 5]] == pytest.approx(100, rel=0.02)
    assert sequence.conditions["tempo"] == 2
    rest = assemble(request(["C4", "E4"], tempo=100, include_seed=False), composition(*tokens), PLAYER)
    assert rest.piece.tempos.tolist() == answer.piece.tempos.tolist()


@pytest.mark.parametrize("tempo", [20, 33.3, 96, 120, 300])
def test_a_constant_tempo_becomes_exactly_the_one_asked_for(tempo):
    answer = assemble(request(["C4"], tempo=tempo), composition(*[note(12, 72, qpm=97)] * 4), PLAYER)
    assert answer.piece.tempos.tolist() == [(0, tempo)]


def test_nothing_sounds_beyond_the_barline_and_the_file_ends_there():
    up, down = Control.PEDAL_UP, Control.PEDAL_DOWN
    tokens = (note(40, 72, duration=10), control(0, up), control(0, down), note(40, 74, duration=200))
    answer = assemble(request(["C4"], bars=1), composition(*tokens, ended=True), PLAYER)
    assert answer.piece.notes[["time", "duration"]].tolist() == [(0, 12), (40, 10), (80, 16)]
    assert answer.piece.pedals.tolist() == [(40, True), (96, False)]
    assert (answer.ended, answer.end) == (True, 96)
    early = assemble(request(bars=2), composition(note(0, 72), control(4, down), ended=True), PLAYER)
    assert early.piece.pedals.tolist() == [(4, True), (192, False)]
    for whole in (answer, early):
        for track in mido.MidiFile(file=io.BytesIO(write_midi(whole.piece, whole.end))).tracks:
            assert sum(message.time for message in track) == 20 * whole.end


def test_without_the_melody_the_last_bar_is_complete_too():
    seed = [{"pitch": 60, "start": 4, "duration": 1}]
    answer = assemble(request(seed, bars=3, include_seed=False), composition(note(20, 72), ended=True), PLAYER)
    assert (times(answer), answer.end) == ([(20, 72)], 2 * 96)
    empty = assemble(request(seed, bars=3, include_seed=False), composition(ended=True), PLAYER)
    assert (times(empty), empty.end) == ([], 2 * 96)


def test_a_piece_cut_before_its_barline_ends_with_its_last_note():
    answer = assemble(request(bars=8), composition(note(0, 72)), PLAYER)
    assert (answer.ended, answer.end) == (False, 0)


def test_a_melody_must_end_before_the_last_barline():
    seed = [{"pitch": 60, "start": 2.5, "duration": 0.4}]  # 2.9 quarter notes: two ticks before the barline of 3/4
    assert request(seed, bars=1, time_signature="3/4").end_time == 72
    seed[0]["duration"] = 0.5
    with pytest.raises(InvalidRequest, match=r"`bars` must be more than 1, which the melody fills in 3/4; got 1"):
        request(seed, bars=1, time_signature="3/4")
    assert request(seed, bars=2, time_signature="3/4").end_time == 144
    long = [{"pitch": 60, "start": 4096, "duration": 16}]
    with pytest.raises(InvalidRequest, match=r"more than 1028, which the melody fills in 4/4"):
        request(long, bars=128)


def test_a_melody_of_more_notes_than_a_piece_may_have_leaves_room_for_one():
    chord = {"pitch": list(range(60, 70)), "duration": 1 / 24}
    assert make_sequence(request([chord] * 410, bars=10)).length == 1


def test_key_and_metre_asked_for_are_in_the_file_and_reach_the_model():
    asked = request(key="Gb major", time_signature="6/8")
    assert make_sequence(asked).conditions == {"metre": TIME_SIGNATURES.index("6/8"), "key": 1 + KEY_NAMES.index("F# major")}
    piece = read_midi(write_midi(assemble(asked, composition(note(0, 60)), PLAYER).piece))
    assert piece.key_signatures == (KeySignature(0, -6, False),)
    assert piece.time_signatures == (TimeSignature(0, 6, 8),)


def test_only_changes_of_the_pedal_are_kept():
    up, down = Control.PEDAL_UP, Control.PEDAL_DOWN
    tokens = (control(0, up), note(0, 60), control(5, down), control(1, down), note(0, 62), control(1, up), control(0, down))
    assert assemble(request(), composition(*tokens), PLAYER).piece.pedals.tolist() == [(5, True), (7, False), (7, True)]


def test_a_piece_may_have_nothing_composed():
    for include in (True, False):
        answer = assemble(request(["C4"], include_seed=include), composition(ended=True), PLAYER)
        assert len(answer.piece.notes) == answer.from_seed.sum() == include
        assert answer.ended
        assert answer.notes_composed == 0
        assert len(mido.MidiFile(file=io.BytesIO(write_midi(answer.piece))).tracks) == 3


def test_title_metre_and_attribution_are_in_the_file():
    piece = read_midi(write_midi(assemble(request(), composition(note(0, 60)), PLAYER).piece))
    assert (piece.title, piece.copyright, piece.time_signatures) == ("Nocturne, seed 42", "Music by nobody", (PLAYER.metre,))


def test_one_note_repeated_without_end_at_one_onset_can_still_be_written():
    held = [{"pitch": 60, "start": i / 24, "duration": 16} for i in range(8)]
    answer = assemble(request(held, length=200), composition(*[note(0, 60, duration=200)] * 200), PLAYER)
    assert answer.notes_composed == MAX_STRUCK
    assert len(read_midi(write_midi(answer.piece)).notes) == 8 + MAX_STRUCK
