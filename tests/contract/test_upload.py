"""A MIDI file as the melody of a request: what is taken from it, and what is refused in words."""

import io

import mido
import pytest

from service.music.midi import read_midi
from service.web.upload import MAX_FILE_BYTES, MAX_NOTES
from tests.contract.test_errors import check_problem


def file_of(*tracks: list[mido.Message | mido.MetaMessage], resolution: int = 480) -> bytes:
    midi = mido.MidiFile(ticks_per_beat=resolution)
    for messages in tracks:
        midi.tracks.append(mido.MidiTrack(messages))
    file = io.BytesIO()
    midi.save(file=file)
    return file.getvalue()


def note(pitch: int, ticks: int, velocity: int = 70, wait: int = 0) -> list[mido.Message]:
    return [mido.Message("note_on", note=pitch, velocity=velocity, time=wait), mido.Message("note_off", note=pitch, time=ticks)]


TUNE = [*note(60, 480), *note(64, 240), *note(67, 240), *note(48, 960)]


def post(client, data: bytes, query: str = "", media_type: str = "audio/midi", **headers):
    return client.post(f"/generate?{query}", data=data, content_type=media_type, headers=headers)


@pytest.mark.parametrize("media_type", ["audio/midi", "audio/x-midi", "audio/mid", "audio/sp-midi"])
def test_the_notes_of_a_file_are_the_beginning_of_the_answer(client, engine, media_type):
    response = post(client, file_of(TUNE), "length=5&seed=7", media_type)
    assert (response.status_code, response.headers["Nocturne-Seed"]) == (200, "7")
    given = read_midi(response.data).notes[:4]
    assert [(n["pitch"], n["time"], n["duration"], n["velocity"]) for n in given] == [
        (60, 0, 24, 70),
        (64, 24, 12, 70),
        (67, 36, 12, 70),
        (48, 48, 48, 70),
    ]
    (sequence,) = engine.submitted
    assert (len(sequence.forced), sequence.length) == (4, 5)
    assert post(client, file_of(TUNE), "length=5&seed=7").data == response.data


def test_a_file_and_the_same_notes_as_json_compose_the_same(client):
    by_file = post(client, file_of(TUNE), "length=9&random_seed=3&tempo=120&time_signature=4/4", Accept="application/json").json
    melody = [
        {"pitch": n["pitch"], "start": n["start"], "duration": n["duration"], "velocity": n["velocity"], "hand": n["hand"]}
        for n in by_file["notes"]
        if n["seed"]
    ]
    fields = {"seed": melody, "random_seed": 3, "length": 9, "tempo": 120, "time_signature": "4/4"}
    assert client.post("/generate", json=fields, headers={"Accept": "application/json"}).json == by_file


def test_metre_and_tempo_of_a_file_hold_unless_others_are_asked_for(client):
    head = [
        mido.MetaMessage("time_signature", numerator=3, denominator=4),
        mido.MetaMessage("set_tempo", tempo=mido.bpm2tempo(90)),
    ]
    told = post(client, file_of([*head, *TUNE]), "seed=1", Accept="application/json").json
    assert (told["time_signature"], told["tempos"][0]) == ("3/4", {"start": 0, "qpm": 90})
    told = post(client, file_of([*head, *TUNE]), "seed=1&time_signature=4/4&tempo=70", Accept="application/json").json
    assert (told["time_signature"], told["tempos"][0]["qpm"]) == ("4/4", 70)
    # What the model does not know, or no request may ask for, is left to the defaults.
    odd = [mido.MetaMessage("time_signature", numerator=7, denominator=8), mido.MetaMessage("set_tempo", tempo=100)]
    assert post(client, file_of([*odd, *TUNE]), "seed=1").status_code == 200


def test_a_key_is_struck_once_at_a_time_and_middle_c_parts_the_hands(client):
    chord = [mido.Message("note_on", note=60, velocity=70) for _ in range(3)]
    again = [mido.Message("note_on", note=60, velocity=80, time=240), mido.Message("note_off", note=60, time=2000)]
    told = post(client, file_of([*chord, *again, *note(59, 100)]), "seed=1", Accept="application/json").json
    given = [(n["pitch"], n["start"], n["duration"], n["hand"]) for n in told["notes"] if n["seed"]]
    assert given == [(60, 0, 0.5, "right"), (60, 0.5, 4.375, "right"), (59, 4.66667, 0.20833, "left")]


@pytest.mark.parametrize(
    ("data", "detail"),
    [
        (b"not a MIDI file", "not a MIDI file: it does not begin with MThd"),
        (file_of(TUNE)[:-20], "the MIDI file is broken: it ends too early"),
        (file_of([]), f"the MIDI file must have 1 to {MAX_NOTES} notes; it has 0"),
        (file_of(note(60, 40) * (MAX_NOTES + 1)), f"the MIDI file must have 1 to {MAX_NOTES} notes; it has {MAX_NOTES + 1}"),
        (file_of(note(20, 100)), "its notes must be in [21, 108], as on a piano; got 20"),
        (file_of(note(60, 100, wait=480 * 4097)), "its last note must start within 4096 quarter notes; it starts at 4097"),
        (file_of(note(60, 2**27, wait=2**27)), "the MIDI file is longer than 100000 quarter notes"),
        (file_of(TUNE)[:-4] + b"\xff" * 2049, "the MIDI file must have at most 2048 bytes above 127 in a row; it has 2049"),
        (file_of(TUNE)[:8] + b"\0\2" + file_of(TUNE)[10:], "the MIDI format must be 0 or 1; got 2"),
    ],
)
def test_a_file_that_is_no_melody_is_refused_in_words(client, engine, data, detail):
    response = post(client, data)
    check_problem(response, 422)
    assert response.json["errors"] == [{"pointer": "", "detail": detail}]
    assert not engine.submitted


def test_a_file_that_is_too_long_empty_or_packed_is_refused(client):
    assert post(client, b"MThd" + bytes(MAX_FILE_BYTES)).status_code == 413
    check_problem(post(client, b""), 400)
    assert post(client, file_of(TUNE), **{"Content-Encoding": "gzip"}).status_code == 415


def test_the_fields_beside_a_file_are_checked_as_in_json(client):
    assert post(client, file_of(TUNE), "length=0").json["errors"][0]["pointer"] == "/length"
    assert post(client, file_of(TUNE), "seed=C4").json["errors"][0]["pointer"] == "/seed"
    assert post(client, file_of(TUNE), "seed=1&random_seed=2").json["errors"][0]["pointer"] == "/random_seed"
    assert post(client, file_of(TUNE), "bars=1&time_signature=4/4").json["errors"][0]["pointer"] == "/bars"
