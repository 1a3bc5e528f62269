"""What /generate answers, with a fake engine: forms, headers, seeds, and the client that leaves."""

import io
import socket
import threading
import time

import mido
import numpy as np
import pytest

from service.errors import EngineOverloaded
from service.music.keys import KEY_NAMES
from service.music.midi import read_midi
from service.music.piece import RESOLUTION, KeySignature, TimeSignature
from service.music.representation import tempo_index, time_signature_index
from service.web.metrics import CAUSES
from tests.metrics import families, plain_values


def as_json(client, **fields):
    response = client.post("/generate", json=fields, headers={"Accept": "application/json"})
    assert response.status_code == 200
    return response.get_json()


def test_a_midi_file_is_the_default(client):
    response = client.post("/generate", json={"seed": 42, "length": 64})
    assert response.status_code == 200
    assert response.headers["Content-Type"] == "audio/midi"
    assert response.headers["Content-Disposition"] == 'attachment; filename="nocturne-42.mid"'
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert response.headers["Vary"] == "Accept"
    told = {name: response.headers[f"Nocturne-{name}"] for name in ("Seed", "Notes", "Ended", "Model")}
    assert told == {"Seed": "42", "Notes": "64", "Ended": "true", "Model": "fake"}
    assert len(read_midi(response.data).notes) == 64
    assert mido.MidiFile(file=io.BytesIO(response.data)).type == 1


@pytest.mark.parametrize(
    ("accept", "media_type"),
    [
        (None, "audio/midi"),
        ("*/*", "audio/midi"),
        ("audio/*", "audio/midi"),
        ("audio/midi", "audio/midi"),
        ("audio/x-midi", "audio/midi"),
        ("audio/mid;q=0.1", "audio/midi"),
        ("application/json", "application/json"),
        ("application/*", "application/json"),
        ("application/json;q=0.4, audio/midi;q=0.5", "audio/midi"),
        ("application/json, audio/midi;q=0.5", "application/json"),
        ("application/json, */*;q=0.1", "application/json"),
        ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", "audio/midi"),  # a browser
    ],
)
def test_the_form_follows_accept(client, accept, media_type):
    response = client.get("/generate?seed=1&length=4", headers={"Accept": accept} if accept else {})
    assert response.headers["Content-Type"] == media_type
    assert ("Content-Disposition" in response.headers) == (media_type == "audio/midi")
    assert response.headers["Nocturne-Seed"] == "1"


def test_the_same_request_gives_the_same_bytes_and_another_seed_another_piece(client):
    one, again, other = (client.post("/generate", json={"seed": seed, "length": 50}) for seed in (1, 1, 2))
    assert one.data == again.data != other.data
    assert one.headers["Cache-Control"] == "no-store"


def test_get_and_post_compose_the_same(client):
    posted = client.post("/generate", json={"seed": 5, "length": 20, "temperature": 0.5, "min_p": 0.1, "end": False})
    got = client.get("/generate?seed=5&length=20&temperature=0.5&min_p=0.1&end=false")
    assert posted.data == got.data
    assert client.get("/generate?random_seed=5&length=20&temperature=0.5").data == posted.data


@pytest.mark.parametrize("fields", [{}, {"seed": ["C4"]}])
def test_a_seed_nobody_gave_is_chosen_and_told(client, fields):
    first, second = client.post("/generate", json=fields), client.post("/generate", json=fields)
    assert first.headers["Nocturne-Seed"] != second.headers["Nocturne-Seed"]
    assert first.headers["Cache-Control"] == "no-store"
    again = client.post("/generate", json={**fields, "random_seed": int(first.headers["Nocturne-Seed"])})
    assert again.data == first.data
    told = as_json(client, **fields)
    assert as_json(client, **fields, random_seed=told["random_seed"]) == told


def test_without_a_body_every_field_takes_its_default(client):
    response = client.post("/generate")
    assert response.status_code == 200
    assert response.headers["Nocturne-Notes"] == "128"


def test_the_largest_seed_and_whole_numbers_with_a_point_are_taken(client):
    assert client.post("/generate", json={"seed": 2**53 - 1}).headers["Nocturne-Seed"] == str(2**53 - 1)
    assert client.post("/generate", json={"seed": 7.0, "length": 4.0}).headers["Nocturne-Seed"] == "7"


def test_the_engine_gets_what_was_asked_for(client, engine):
    fields = {"seed": ["C4", "D4"], "random_seed": 3, "length": 5, "temperature": 0.25, "min_p": 0.5, "end": False}
    assert client.post("/generate", json=fields).status_code == 200
    (sequence,) = engine.submitted
    assert (sequence.random_seed, sequence.length, len(sequence.forced)) == (3, 5, 2)
    assert (sequence.params.temperature, sequence.params.min_p) == (0.25, 0.5)
    assert (sequence.tell_length, sequence.end_time) == (False, -1)
    assert sequence.bar_ticks == 3 * RESOLUTION
    assert sequence.conditions == {"metre": time_signature_index(TimeSignature(0, 3, 4)), "rendition": 2}


ASKED = {"style": "chopin", "rendition": "score", "key": "sib menor", "time_signature": "4/4", "tempo": 100.5, "bars": 6}


def test_the_engine_gets_the_conditions_that_were_asked_for(client, engine):
    assert client.post("/generate", json={"seed": ["C4", "D4"], **ASKED}).status_code == 200
    (sequence,) = engine.submitted
    assert sequence.conditions == {"metre": 1, "composer": 2, "rendition": 1, "key": 23, "tempo": 2}
    assert (sequence.bar_ticks, sequence.end_time, sequence.tell_length) == (96, 6 * 96, False)
    assert (sequence.forced[:, 5] == tempo_index(np.array([100.5]))).all()


def test_what_was_asked_for_stands_in_the_answer(client):
    told = as_json(client, seed=5, **ASKED)
    assert told["tempos"] == [{"start": 0, "qpm": 100.5}]
    assert (told["time_signature"], told["ended"]) == ("4/4", True)
    assert max(note["start"] + note["duration"] for note in told["notes"]) <= 24
    assert told["pedals"] == [{"start": 0.25, "down": True}, {"start": 24, "down": False}]
    response = client.post("/generate", json={"seed": 5, **ASKED})
    assert response.headers["Nocturne-Ended"] == "true"
    midi = mido.MidiFile(file=io.BytesIO(response.data))
    assert [sum(message.time for message in track) for track in midi.tracks] == [24 * midi.ticks_per_beat] * 3
    assert read_midi(response.data).key_signatures == (KeySignature(0, -5, True),)


def test_get_and_post_take_the_same_conditions(client):
    assert (
        client.get("/generate", query_string={"seed": 5, **ASKED}).data
        == client.post("/generate", json={"seed": 5, **ASKED}).data
    )


def test_without_a_key_none_is_written(client):
    assert read_midi(client.post("/generate", json={"seed": 5}).data).key_signatures == ()


def test_the_piece_has_exactly_its_length_and_says_whether_it_ends(client):
    for end in (True, False):
        told = as_json(client, seed=1, length=2000, end=end)
        assert (told["ended"], told["notes_composed"], len(told["notes"])) == (end, 2000, 2000)
        assert client.post("/generate", json={"seed": 1, "end": end}).headers["Nocturne-Ended"] == str(end).lower()


def test_a_piece_whose_notes_run_out_before_its_barline_says_so(client):
    chord = list(range(21, 31))
    told = as_json(client, seed=[{"pitch": chord, "duration": 1 / 24}, *[chord] * 399], bars=128)
    assert (told["ended"], told["notes_composed"]) == (False, 96)


MELODY = [
    {"pitch": "E4", "duration": 1, "velocity": 80},
    {"pitch": ["do3", "sol3"], "start": 0, "duration": 2.5, "velocity": 61, "hand": "left"},
    {"pitch": 76, "start": 1, "duration": 1 / 3, "hand": "right"},
]
EXPECTED = [
    (48, "C3", 0, 2.5, 61, "left"),
    (55, "G3", 0, 2.5, 61, "left"),
    (64, "E4", 0, 1, 80, "right"),
    (76, "E5", 1, 0.33333, 61, "right"),
]


def test_a_melody_is_the_exact_beginning_of_the_answer(client):
    told = as_json(client, seed=MELODY, random_seed=1, length=10)
    keys = ("pitch", "name", "start", "duration", "velocity", "hand")
    assert [tuple(note[key] for key in keys) for note in told["notes"] if note["seed"]] == EXPECTED
    assert told["notes_composed"] == 10
    assert min(note["start"] for note in told["notes"] if not note["seed"]) >= 1
    midi = read_midi(client.post("/generate", json={"seed": MELODY, "random_seed": 1, "length": 10}).data)
    assert len(midi.notes) == len(told["notes"]) == 14
    assert midi.notes["time"].tolist() == [round(note["start"] * RESOLUTION) for note in told["notes"]]
    assert midi.notes["duration"].tolist() == [round(note["duration"] * RESOLUTION) for note in told["notes"]]


def test_include_seed_false_gives_only_the_rest_from_the_start_of_its_bar(client):
    whole = as_json(client, seed=MELODY, random_seed=1, length=10)
    rest = as_json(client, seed=MELODY, random_seed=1, length=10, include_seed=False)
    composed = [note for note in whole["notes"] if not note["seed"]]
    bar = 3  # quarter notes, the fake model's 3/4
    origin = composed[0]["start"] // bar * bar
    assert [{**note, "start": pytest.approx(note["start"] - origin, abs=1e-4)} for note in composed] == rest["notes"]


def test_the_json_tells_metre_tempo_and_pedal(client):
    told = as_json(client, seed=1, length=3)
    assert told["time_signature"] == "3/4"
    assert [tempo["start"] for tempo in told["tempos"]] == [0]
    assert told["tempos"][0]["qpm"] == pytest.approx(90, rel=0.02)
    assert told["pedals"] == [{"start": 0.25, "down": True}]
    assert (told["model"], told["random_seed"]) == ("fake", 1)


def test_json_and_midi_hold_the_same_notes(client):
    told = as_json(client, seed=9, length=300)
    notes = read_midi(client.post("/generate", json={"seed": 9, "length": 300}).data).notes
    assert notes["pitch"].tolist() == [note["pitch"] for note in told["notes"]]
    assert np.allclose(notes["time"] / RESOLUTION, [note["start"] for note in told["notes"]], atol=1e-4)


def test_the_notes_of_an_answer_can_be_sent_back_as_a_melody(client):
    told = as_json(client, seed=9, length=40)
    keys = ("pitch", "start", "duration", "velocity", "hand")
    unique = {(note["start"], note["pitch"]): {key: note[key] for key in keys} for note in told["notes"]}
    again = as_json(client, seed=list(unique.values()), length=1)
    assert [{key: note[key] for key in keys} for note in again["notes"] if note["seed"]] == list(unique.values())


def test_the_models_are_told(client):
    (model,) = client.get("/models").get_json()["models"]
    assert (model["name"], model["provider"], model["licence"], model["nats_per_note"]) == ("fake", "cpu", "CC BY-SA 4.0", 3.5)
    assert model["attribution"] == "Music by nobody"
    assert model["styles"] == ["Bach, Johann Sebastian", "Chopin, Fryderyk", "Schumann, Clara", "Schumann, Robert"]
    assert model["renditions"] == ["score", "performed"]
    assert model["keys"] == list(KEY_NAMES)
    assert model["time_signatures"] == ["4/4", "3/4"]
    assert model["tempo_range"] == [60, 120]


def test_what_a_model_does_not_know_is_told_as_empty(bare_client):
    (model,) = bare_client.get("/models").get_json()["models"]
    assert [model[name] for name in ("styles", "renditions", "keys", "time_signatures", "tempo_range")] == [[]] * 5
    assert "licence" not in model


def test_every_name_that_models_tells_can_be_asked_for(client):
    (model,) = client.get("/models").get_json()["models"]
    for plural in ("styles", "renditions", "keys", "time_signatures"):
        for name in model[plural]:
            assert client.get("/generate", query_string={plural[:-1]: name, "length": 2}).status_code == 200


def test_head_and_options_are_answered(client):
    response = client.head("/generate?seed=3")
    assert (response.status_code, response.data) == (200, b"")
    assert response.headers["Nocturne-Seed"] == "3"
    assert set(client.options("/generate").headers["Allow"].split(", ")) == {"GET", "HEAD", "OPTIONS", "POST"}


def test_a_client_that_left_is_noticed_and_its_piece_cancelled(client, engine):
    engine.stuck = True
    here, there = socket.socketpair()
    statuses = []

    def ask():
        statuses.append(client.get("/generate", environ_overrides={"gunicorn.socket": here}).status_code)

    with here:
        thread = threading.Thread(target=ask)
        thread.start()
        there.close()
        assert engine.gave_up.wait(10)
        thread.join(10)
    assert statuses == [499]


def test_metrics_say_what_the_engine_does(client, engine):
    def metrics() -> dict[str, float]:
        response = client.get("/metrics")
        assert response.content_type.startswith("text/plain; version=0.0.4")
        text = response.get_data(as_text=True)
        assert all(family.documentation for family in families(text).values())
        return plain_values(text)

    expected = {"engine_ready": 1, "slots_in_use": 3, "queue_length": 2, "requests_pending": 5, "chunks_total": 50}
    expected |= {"notes_composed_total": 700, "requests_cancelled_total": 0, "engine_restarts_total": 1}
    expected |= {"slots": 64, "queue_limit": 10, "batch_rows_count": 50, "batch_rows_sum": 150}
    expected |= {"step_seconds_count": 800, "step_seconds_sum": 2.5}
    assert {f"nocturne_{name}": value for name, value in expected.items()}.items() <= metrics().items()
    engine.ready = False
    assert metrics()["nocturne_engine_ready"] == 0
    assert metrics()["nocturne_reloads_refused_total"] == 0
    client.application.extensions["metrics"].reloads_refused = lambda: 3
    assert metrics()["nocturne_reloads_refused_total"] == 3
    assert 0 < metrics()["process_start_time_seconds"] < time.time()
    assert metrics()["process_resident_memory_bytes"] > 2**20


def test_metrics_count_answers_by_operation_and_status_and_time_what_was_composed(client, engine):
    for _ in range(3):
        client.post("/generate", json={"length": 2})
    client.post("/generate", json={"length": 0})
    client.get("/nowhere")
    engine.failure = EngineOverloaded("the queue is full")
    client.get("/generate")
    found = families(client.get("/metrics").get_data(as_text=True))
    counted = {
        (sample.labels["operation"], sample.labels["status"]): sample.value
        for sample in found["nocturne_requests"].samples
        if sample.name.endswith("_total") and sample.value
    }
    expected = {("generate", "200"): 3, ("generate", "422"): 1, ("generateByQuery", "503"): 1, ("none", "404"): 1}
    assert counted == expected
    refused = {sample.labels["cause"]: sample.value for sample in found["nocturne_rejections"].samples}
    assert refused == dict.fromkeys(CAUSES, 0) | {"invalid": 1, "not found": 1, "queue full": 1}
    for name in ("queue", "first_note", "compose", "answer"):
        counts = [s.value for s in found[f"nocturne_{name}_seconds"].samples if s.name.endswith("_count")]
        assert counts == [3]


def test_a_client_that_waits_or_sends_more_has_not_left(client):
    here, there = socket.socketpair()
    with here, there:
        there.send(b"GET /livez")  # the next request, pipelined
        assert client.get("/generate?length=3", environ_overrides={"gunicorn.socket": here}).status_code == 200
        assert there.send(b"more")
        assert here.recv(100) == b"GET /livezmore"
