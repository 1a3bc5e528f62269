import pytest

from service.errors import InvalidRequest
from service.music.piece import RESOLUTION, Hand
from service.web.melody import MAX_HELD, parse_melody

RIGHT, LEFT = Hand.RIGHT, Hand.LEFT


def rows(items):
    return parse_melody(items).tolist()


def violations(items):
    with pytest.raises(InvalidRequest) as caught:
        parse_melody(items)
    return caught.value.violations


def test_plain_items_are_eighth_notes_one_after_the_other():
    assert rows([60, "D4", "mi4"]) == [(0, 60, 12, 64, RIGHT), (12, 62, 12, 64, RIGHT), (24, 64, 12, 64, RIGHT)]


def test_notes_of_a_chord_start_and_end_together_and_the_next_item_follows_it():
    assert rows([["C4", 64], "G4"]) == [(0, 60, 12, 64, RIGHT), (0, 64, 12, 64, RIGHT), (12, 67, 12, 64, RIGHT)]


def test_what_an_object_leaves_out_follows_the_item_before():
    items = [{"pitch": "C4", "duration": 2, "velocity": 100, "hand": "left"}, "D4", {"pitch": ["E4", 67], "start": 0.5}, 72]
    assert rows(items) == [
        (0, 60, 48, 100, LEFT),
        (12, 64, 48, 100, LEFT),
        (12, 67, 48, 100, LEFT),
        (48, 62, 48, 100, LEFT),
        (60, 72, 48, 100, LEFT),
    ]


def test_times_are_rounded_to_the_grid_and_no_note_vanishes():
    assert rows([{"pitch": 60, "start": 1 / 3, "duration": 0.0416}]) == [(8, 60, 1, 64, RIGHT)]
    assert rows([{"pitch": 60, "start": 0.0209, "duration": 0.06}]) == [(1, 60, 1, 64, RIGHT)]
    assert rows([{"pitch": 60.0, "start": 1, "duration": 16, "velocity": 1.0}]) == [(24, 60, 16 * RESOLUTION, 1, RIGHT)]


def test_a_name_that_is_none_is_pointed_at():
    (one,) = violations(["C4", {"pitch": ["C4", "H4"]}])
    assert one.pointer == "/seed/1/pitch/1"
    assert one.detail.startswith('`seed[1].pitch[1]` is "H4": not the name of a note')


def test_every_wrong_item_is_named():
    assert [v.pointer for v in violations(["H4", "C4", "C9"])] == ["/seed/0", "/seed/2"]


@pytest.mark.parametrize(
    ("items", "where"),
    [
        ([["C4", 60]], "/seed/0"),
        (["C4", {"pitch": "B#3", "start": 0}], "/seed/1"),
        ([{"pitch": 60, "start": 1}, {"pitch": 60, "start": 1.001, "hand": "left"}], "/seed/1"),  # the same tick
    ],
)
def test_a_key_struck_twice_at_once_is_refused(items, where):
    (one,) = violations(items)
    assert one.pointer == where
    assert "strikes C4 (60) twice at" in one.detail


def test_a_key_may_be_held_by_some_notes_but_not_by_many():
    overlapping = [{"pitch": 60, "start": i / 24, "duration": 16} for i in range(MAX_HELD)]
    assert len(rows(overlapping)) == MAX_HELD
    (one,) = violations([*overlapping, {"pitch": 60, "start": 15}])
    assert one.pointer == f"/seed/{MAX_HELD}"
    assert len(rows([*overlapping, {"pitch": 60, "start": 17}])) == MAX_HELD + 1
