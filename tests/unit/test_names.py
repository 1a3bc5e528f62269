import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import InvalidMusic
from service.music.names import fold, parse_pitch_name, pitch_name


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("C4", 60), ("c4", 60), ("A0", 21), ("C8", 108), ("A4", 69), (" B3 ", 59),
        ("C#4", 61), ("Db4", 61), ("F♯3", 54), ("E♭5", 75), ("G##4", 69), ("Gx4", 69), ("Abb4", 67), ("G♮4", 67),
        ("B#3", 60), ("Cb4", 59), ("bb3", 58), ("b3", 59),  # the octave is that of the letter; b is a note and a flat
        ("do4", 60), ("Do4", 60), ("re#4", 63), ("ré4", 62), ("re\u0301" "4", 62), ("mib3", 51), ("fa#5", 78), ("sol4", 67),
        ("solb4", 66), ("la4", 69), ("lab3", 56), ("si3", 59), ("sib3", 58), ("ti3", 59), ("ut4", 60),
    ],
)  # fmt: skip
def test_names_of_letters_and_syllables_are_read(name, number):
    assert parse_pitch_name(name) == number


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("H4", "not the name of a note"),
        ("", "not the name of a note"),
        ("4", "not the name of a note"),
        ("60", "not the name of a note"),
        ("C#", "needs its octave, as in C#4"),
        ("C44", "not the name of a note"),
        ("C٤", "not the name of a note"),  # a digit, but not one of ours
        ("C###4", "not the name of a note"),
        ("G#0", "outside the piano"),
        ("Ab0", "outside the piano"),
        ("C#8", "outside the piano, whose keys run from A0 to C8"),
        ("c-1", "outside the piano"),
    ],
)
def test_what_is_no_key_of_the_piano_is_refused_with_the_reason(name, what):
    with pytest.raises(InvalidMusic, match=what):
        parse_pitch_name(name)


@pytest.mark.parametrize("number", range(21, 109))
def test_every_key_has_a_name_that_reads_back(number):
    assert parse_pitch_name(pitch_name(number)) == number


@given(st.text(max_size=12))
def test_any_text_is_a_key_or_refused(text):
    try:
        assert 21 <= parse_pitch_name(text) <= 108
    except InvalidMusic:
        pass


@pytest.mark.parametrize(
    ("text", "plain"),
    [("Żeleński", "zelenski"), ("Łodwigowski", "lodwigowski"), (" ALBÉNIZ ", "albeniz"), ("Dvor\u030cák", "dvorak")],
)
def test_names_are_compared_without_accents_and_capitals(text, plain):
    assert fold(text) == plain
