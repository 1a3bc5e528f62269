import pytest

from service.errors import ModelMismatch
from service.music.piece import TimeSignature
from service.web.player import Player

METADATA = {
    "conditions": {"metre": ["other", "4/4", "3/4"], "rendition": ["unknown", "score"], "tempo": ["unknown", "48", "95"]},
    "defaults": {"time_signature": "3/4", "rendition": "score"},
    "attribution": "Somebody",
}


def test_what_the_model_says_of_itself():
    player = Player.from_metadata("x", METADATA)
    assert (player.name, player.metre, player.attribution) == ("x", TimeSignature(0, 3, 4), "Somebody")
    assert player.defaults == {"metre": 2, "rendition": 1}
    assert player.values("rendition") == ("score",)
    assert player.values("composer") == ()


def test_a_default_that_its_data_did_not_have_is_left_out():
    metadata = {**METADATA, "defaults": {"rendition": "performed"}}
    assert Player.from_metadata("x", metadata).defaults == {"metre": 1}


def test_what_can_be_asked_of_it():
    assert Player.from_metadata("x", METADATA).abilities() == {
        "styles": [],
        "renditions": ["score"],
        "keys": [],
        "time_signatures": ["4/4", "3/4"],
        "tempo_range": [48, 95],
    }


def test_a_model_that_says_nothing_plays_in_common_time_and_can_be_asked_for_nothing():
    player = Player.from_metadata("x", {})
    assert player == Player("x", TimeSignature(0, 4, 4), {"metre": 1})
    assert set(map(tuple, player.abilities().values())) == {()}


@pytest.mark.parametrize("metre", ["four", "4/0", "/4", 4])
def test_a_model_with_an_impossible_metre_is_refused(metre):
    with pytest.raises(ModelMismatch, match="time_signature"):
        Player.from_metadata("x", {"defaults": {"time_signature": metre}})
