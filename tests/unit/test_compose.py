import io

import mido
import numpy as np
import pytest

from service.engine.sampling import Composition
from service.errors import ModelMismatch
from service.music.midi import read_midi, write_midi
from service.music.piece import DEFAULT_QPM, NOTE, Hand, TimeSignature, records
from service.music.representation import PITCH_OFFSET, Control, NoteToken, encode_notes, tempo_index
from service.web.compose import MAX_STRUCK, Player, assemble, make_sequence, release_keys
from service.web.requests import GenerateRequest

PLAYER = Player("piano", TimeSignature(0, 4, 4), {"metre": 1}, "Music by nobody")


def request(seed=(), **fields):
    given = {"length": 4, "temperature": 1.0, "min_p": 0.05, "include_seed": True, "end": True, "random_seed": 42, **fields}
    return GenerateRequest.from_fields({**given, "seed": list(seed)} if seed else given, "piano")


def note(shift, pitch, duration=12, velocity=17, qpm=DEFAULT_QPM, hand=Hand.RIGHT):
    return NoteToken(shift, hand, pitch - PITCH_OFFSET, duration, velocity, int(tempo_index(np.array([qpm]))[0]))


def control(shift, what):
    return NoteToken(shift, 0, what, 0, 0, 0)


def composition(*tokens, ended=False):
    return Composition(np.array(tokens, np.int32).reshape(-1, 6), ended)


def times(answer):
    return answer.piece.notes[["time", "pitch"]].tolist()


def test_the_sequence_says_what_was_asked_for():
    sequence = make_sequence(request(["C4", "E4"], temperature=0.5, min_p=0.1, end=False, length=9), PLAYER)
    assert (sequence.random_seed, sequence.length, sequence.bar_ticks, sequence.bar_offset) == (42, 9, 96, 0)
    assert (sequence.params.temperature, sequence.params.min_p, sequence.params.allow_end) == (0.5, 0.1, False)
    assert sequence.conditions == {"metre": 1}
    assert sequence.forced.tolist() == encode_notes(request(["C4", "E4"]).melody).tolist()


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


def test_a_key_is_let_go_before_it_is_struck_again():
    notes = records(NOTE, [(0, 60, 48, 64, 1), (0, 64, 48, 64, 1), (12, 60, 12, 64, 2), (24, 60, 5, 64, 1)])
    assert release_keys(notes)["duration"].tolist() == [12, 48, 12, 5]
    assert notes["duration"].tolist() == [48, 48, 12, 5]


def test_one_note_repeated_without_end_at_one_onset_can_still_be_written():
    held = [{"pitch": 60, "start": i / 24, "duration": 16} for i in range(8)]
    answer = assemble(request(held, length=200), composition(*[note(0, 60, duration=200)] * 200), PLAYER)
    assert answer.notes_composed == MAX_STRUCK
    assert len(read_midi(write_midi(answer.piece)).notes) == 8 + MAX_STRUCK


def test_what_the_model_says_of_itself_becomes_its_conditions():
    metadata = {
        "conditions": {"style": ["unknown", "waltz"]},
        "defaults": {"time_signature": "3/4", "style": "waltz"},
        "attribution": "Somebody",
    }
    assert Player.from_metadata("x", metadata) == Player("x", TimeSignature(0, 3, 4), {"metre": 2, "style": 1}, "Somebody")
    metadata["defaults"]["style"] = "polka"  # trained on data without any
    assert Player.from_metadata("x", metadata).conditions == {"metre": 2}
    assert Player.from_metadata("x", {}) == Player("x", TimeSignature(0, 4, 4), {"metre": 1}, "")


@pytest.mark.parametrize("metre", ["four", "4/0", "/4", 4])
def test_a_model_with_an_impossible_metre_is_refused(metre):
    with pytest.raises(ModelMismatch, match="time_signature"):
        Player.from_metadata("x", {"defaults": {"time_signature": metre}})
