import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import InvalidMusic
from service.music.keys import KEY_NAMES, MOST_FIFTHS, Key, parse_key

# Sharps (negative: flats) of the 24 signatures in the order of KEY_NAMES, as every book of music theory has them.
FIFTHS = (0, -5, 2, -3, 4, -1, 6, 1, -4, 3, -2, 5, -3, 4, -1, -6, 1, -4, 3, -2, 5, 0, -5, 2)

STEPS = {"c": "do", "d": "re", "e": "mi", "f": "fa", "g": "sol", "a": "la", "b": "si"}
ACCIDENTALS = {
    "": ("", " natural"),
    "#": ("#", "♯", " sharp", " sostenido", " dièse"),
    "b": ("b", "♭", " flat", " bemol", "-bémol"),
}
MODES = {"major": ("major", "maj", "mayor", "majeur", "maggiore"), "minor": ("minor", "min", "menor", "mineur", "minore")}


def test_every_name_is_its_own_key_with_its_signature():
    assert [parse_key(name) for name in KEY_NAMES] == [Key(i, fifths) for i, fifths in enumerate(FIFTHS)]
    assert [parse_key(name).minor for name in KEY_NAMES] == [False] * 12 + [True] * 12


@pytest.mark.parametrize(
    ("name", "usual", "fifths"),
    [
        ("C major", "C major", 0), ("c minor", "C minor", -3), ("F# minor", "F# minor", 3), (" A  Minor ", "A minor", 0),
        ("Gb major", "F# major", -6), ("C# major", "Db major", 7), ("Cb major", "B major", -7), ("D# minor", "Eb minor", 6),
        ("Ab minor", "G# minor", -7), ("A# minor", "Bb minor", 7),  # enharmonics keep their own signature
        ("G# major", "Ab major", -4), ("Fb major", "E major", 4), ("Db minor", "C# minor", 4),  # where there is one
        ("F## minor", "G minor", -2), ("B# major", "C major", 0), ("Cx minor", "D minor", -1), ("Ebb major", "D major", 2),
        ("do mayor", "C major", 0), ("la menor", "A minor", 0), ("sib mayor", "Bb major", -2), ("fa# menor", "F# minor", 3),
        ("re sostenido menor", "Eb minor", 6), ("si bemol mayor", "Bb major", -2), ("Mi♭ Mayor", "Eb major", -3),
        ("SOL mayor", "G major", 1), ("ré mineur", "D minor", -1), ("ut dièse mineur", "C# minor", 4),
        ("C_sharp-minor", "C# minor", 4), ("la bemolle maggiore", "Ab major", -4), ("Bb minor", "Bb minor", -5),
        ("b minor", "B minor", 2), ("ti menor", "B minor", 2),
    ],
)  # fmt: skip
def test_keys_are_read_in_letters_and_syllables(name, usual, fifths):
    assert parse_key(name) == Key(KEY_NAMES.index(usual), fifths)


@pytest.mark.parametrize(
    "name", ["", "major", "H major", "C4 major", "C ###  major", "do", "C mixolydian", "C major 7", "8", "C\0major"]
)
def test_what_is_no_key_is_refused_with_the_reason(name):
    with pytest.raises(InvalidMusic, match=r"names look like C major, F# minor, la menor or sib mayor|needs its mode"):
        parse_key(name)


def test_a_tonic_alone_needs_its_mode():
    with pytest.raises(InvalidMusic, match="the name of a key needs its mode, as in Sib major or Sib minor"):
        parse_key("Sib")


@given(st.sampled_from(sorted(STEPS)), st.sampled_from(sorted(ACCIDENTALS)), st.sampled_from(sorted(MODES)), st.data())
def test_however_it_is_written_it_is_the_same_key(letter, accidental, mode, data):
    plain = parse_key(f"{letter}{accidental} {mode}")
    assert abs(plain.fifths) <= MOST_FIFTHS
    assert (plain.fifths * 7 + (9 if plain.minor else 0)) % 12 == plain.number % 12, "the signature is that of the tonic"
    step = data.draw(st.sampled_from([letter, STEPS[letter]]))
    sign, word = data.draw(st.sampled_from(ACCIDENTALS[accidental])), data.draw(st.sampled_from(MODES[mode]))
    style = data.draw(st.sampled_from([str.upper, str.lower, str.title]))
    assert parse_key(style(f"{step}{sign} {word}")) == plain


@given(st.text(max_size=40))
def test_any_text_is_a_key_or_refused(text):
    try:
        assert 0 <= parse_key(text).number < len(KEY_NAMES)
    except InvalidMusic:
        pass
