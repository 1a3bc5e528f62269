"""What a request asks of the piece, as the model's indices: composers by any name, keys, metres, tempos; and what is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import InvalidMusic, InvalidRequest
from service.music.keys import KEY_NAMES, Key
from service.music.piece import TimeSignature
from service.web.conditions import Conditions, nearest_tempo, read_conditions
from service.web.player import Player
from service.web.styles import find_composer

COMPOSERS = (
    "Albéniz, Isaac", "Anonymous", "Bach, Johann Sebastian", "Chopin, Fryderyk", "Holland, Jan Dawid",
    "Mendelssohn Bartholdy, Felix", "Ogiński, Michał Kleofas", "Schumann, Clara", "Schumann, Robert",
    "Łodwigowski, Edward Stefan", "Żeleński, Władysław",
)  # fmt: skip
CONDITIONS = {
    "metre": ("other", "4/4", "3/4"),
    "composer": ("unknown", *COMPOSERS),
    "rendition": ("unknown", "score", "performed"),
    "key": ("unknown", *KEY_NAMES),
    "tempo": ("unknown", "60", "90", "120"),
}
PLAYER = Player("piano", TimeSignature(0, 4, 4), {"metre": 1, "rendition": 2}, conditions=CONDITIONS)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Chopin, Fryderyk", "Chopin, Fryderyk"), ("chopin", "Chopin, Fryderyk"), ("FRYDERYK CHOPIN", "Chopin, Fryderyk"),
        ("albeniz", "Albéniz, Isaac"), ("Albe\u0301niz", "Albéniz, Isaac"), ("  anonymous ", "Anonymous"),
        ("bach", "Bach, Johann Sebastian"), ("J. S. Bach", "Bach, Johann Sebastian"), ("Bach, J.S.", "Bach, Johann Sebastian"),
        ("Johann Sebastian Bach", "Bach, Johann Sebastian"), ("mendelssohn", "Mendelssohn Bartholdy, Felix"),
        ("Felix Mendelssohn-Bartholdy", "Mendelssohn Bartholdy, Felix"), ("Robert Schumann", "Schumann, Robert"),
        ("schumann, c.", "Schumann, Clara"), ("lodwigowski", "Łodwigowski, Edward Stefan"), ("zelenski", "Żeleński, Władysław"),
        ("Michal Oginski", "Ogiński, Michał Kleofas"),
    ],
)  # fmt: skip
def test_a_composer_is_found_by_any_reasonable_name(text, name):
    assert find_composer(text, COMPOSERS) == name


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("chopen", r'not a composer that the model knows; did you mean "Chopin, Fryderyk"\? /models has them all'),
        ("Frédéric Chopin", 'did you mean "Chopin, Fryderyk"'),
        ("C. P. E. Bach", 'did you mean "Bach, Johann Sebastian"'),
        ("schumann", 'several composers have that name: "Schumann, Clara" or "Schumann, Robert"; /models has them all'),
        ("Jan", "not a composer that the model knows"),  # a given name alone
        ("J. D.", "not a composer that the model knows"),
        ("xyzzy", "not a composer that the model knows; /models has them all"),
        ("unknown", "not a composer that the model knows"),
        ("?!", "not a composer that the model knows; /models has them all"),
    ],
)
def test_a_composer_nobody_knows_is_refused_with_those_that_come_closest(text, what):
    with pytest.raises(InvalidMusic, match=what):
        find_composer(text, COMPOSERS)


@given(st.sampled_from(COMPOSERS), st.sampled_from([str.upper, str.lower, str.title]))
def test_every_name_of_the_list_finds_itself(name, style):
    assert find_composer(style(name), COMPOSERS) == name
    family, _, given_names = name.partition(", ")
    assert find_composer(style(f"{given_names} {family}"), COMPOSERS) == name


def test_what_is_asked_becomes_the_models_indices_and_the_rest_its_defaults():
    fields = {"style": "chopin", "key": "Gb major", "time_signature": "3/4", "tempo": 100, "length": 4}
    indices = {"metre": 2, "composer": 1 + COMPOSERS.index("Chopin, Fryderyk"), "rendition": 2, "key": 7, "tempo": 2}
    assert read_conditions(fields, PLAYER) == Conditions(indices, TimeSignature(0, 3, 4), Key(6, -6), 100.0)
    assert read_conditions({"rendition": "score"}, PLAYER).indices == {"metre": 1, "rendition": 1}
    assert read_conditions({}, PLAYER) == Conditions({"metre": 1, "rendition": 2}, TimeSignature(0, 4, 4))


@pytest.mark.parametrize(
    ("qpm", "name"), [(20, "60"), (73.4, "60"), (73.5, "90"), (90, "90"), (103.9, "90"), (104, "120"), (300, "120")]
)
def test_the_tempo_class_is_the_nearest_by_ratio(qpm, name):
    assert nearest_tempo(qpm, CONDITIONS["tempo"][1:]) == name


def test_what_the_model_does_not_know_is_refused_field_by_field():
    fields = {"style": "chopen", "key": "H major", "time_signature": "5/4", "tempo": 100}
    with pytest.raises(InvalidRequest) as caught:
        read_conditions(fields, PLAYER)
    told = {violation.pointer: violation.detail for violation in caught.value.violations}
    assert told.keys() == {"/style", "/key", "/time_signature"}
    assert told["/time_signature"] == '`time_signature` is "5/4": the model knows only "4/4", "3/4"'
    assert told["/key"].startswith('`key` is "H major": not the name of a key')


def test_a_model_without_conditions_says_so_and_composes_all_the_same():
    bare = Player.from_metadata("mine", {})
    asked = {"style": "bach", "rendition": "score", "key": "C major", "time_signature": "3/4", "tempo": 90}
    with pytest.raises(InvalidRequest) as caught:
        read_conditions(asked, bare)
    assert [violation.pointer for violation in caught.value.violations] == [f"/{field}" for field in asked]
    assert caught.value.violations[0].detail == (
        '`style` is "bach": the model mine knows no styles; /models has what can be asked of it'
    )
    assert read_conditions({}, bare).indices == {"metre": 1}
