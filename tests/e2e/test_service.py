"""gunicorn and the shipped model over a real socket: the files that clients get, and the clients that misbehave."""

import json
import os
from bisect import bisect
from concurrent.futures import ThreadPoolExecutor
from statistics import median

import mido
import pretty_midi
import pytest
import symusic

from tests.e2e.conftest import request_bytes, running, wait_until


def test_the_answer_is_a_file_that_every_player_opens(service, tmp_path):
    path = tmp_path / "melody.mid"
    path.write_bytes(service.compose(seed=42, length=64, end=False).content)
    pitches = sorted(note.pitch for track in symusic.Score(path).tracks for note in track.notes)
    assert len(pitches) == 64
    assert 21 <= pitches[0] <= pitches[-1] <= 108
    by_pretty_midi = pretty_midi.PrettyMIDI(str(path))
    assert sorted(note.pitch for part in by_pretty_midi.instruments for note in part.notes) == pitches
    for track in mido.MidiFile(path).tracks:
        sounding = {}
        for message in track:
            if message.type in ("note_on", "note_off"):
                key = message.channel, message.note
                sounding[key] = sounding.get(key, 0) + (1 if message.type == "note_on" and message.velocity else -1)
        assert not any(sounding.values()), "a note is left hanging"


def test_get_and_post_compose_the_same_bytes_again_and_again(service):
    first = service.compose(seed=42, length=64)
    assert first.status_code == 200
    assert first.headers["Content-Type"] == "audio/midi"
    assert first.headers["Nocturne-Seed"] == "42"
    assert service.compose(seed=42, length=64).content == first.content
    assert service.http.get("/generate?seed=42&length=64").content == first.content
    assert service.compose(seed=43, length=64).content != first.content


def test_the_answer_says_where_its_time_went(service):
    timing = service.compose(seed=1, length=200).headers["Server-Timing"]
    parts = {name: float(value) for name, _, value in (part.partition(";dur=") for part in timing.split(", "))}
    assert 0 < parts["compose"] <= parts["total"]
    assert sum(parts.values()) - parts["total"] <= parts["total"] + 0.5  # each is rounded


def test_a_crowd_gets_what_each_gets_alone(service):
    asked = [
        {"seed": seed, "length": 20 + 7 * seed, "temperature": seed % 3 / 2, "min_p": 0.01 * seed, "end": seed % 2 == 0}
        for seed in range(16)
    ]
    asked += [{"seed": seed, "bars": 4 + seed, "key": "sol menor", "style": "bach", "tempo": 90 + seed} for seed in range(4)]
    alone = [service.compose(**fields).content for fields in asked]
    with ThreadPoolExecutor(20) as crowd:
        assert list(crowd.map(lambda fields: service.compose(**fields).content, asked)) == alone


def test_a_melody_is_continued_exactly(service):
    melody = [
        {"pitch": "E4", "start": 0, "duration": 1, "velocity": 81, "hand": "right"},
        {"pitch": "C3", "start": 0, "duration": 2.5, "velocity": 50, "hand": "left"},
        {"pitch": "G4", "start": 1, "duration": 1 / 3, "velocity": 33, "hand": "right"},
    ]
    told = service.notes(seed=melody, random_seed=7, length=30, end=False)
    keys = ("pitch", "start", "duration", "velocity", "hand")
    given = [tuple(note[key] for key in keys) for note in told["notes"] if note["seed"]]
    assert given == [(48, 0, 2.5, 50, "left"), (64, 0, 1, 81, "right"), (67, 1, 0.33333, 33, "right")]
    composed = [note for note in told["notes"] if not note["seed"]]
    assert len(composed) == told["notes_composed"] == 30
    assert composed[0]["start"] >= 1
    rest = service.notes(seed=melody, random_seed=7, length=30, end=False, include_seed=False)
    assert [note["pitch"] for note in rest["notes"]] == [note["pitch"] for note in composed]
    assert service.notes(seed=[*melody, "B4"], random_seed=7, length=30, end=False)["notes"][4:] != composed


def test_exactly_length_notes_are_composed(service):
    for length in (1, 17, 400):
        for end in (True, False):
            told = service.notes(seed=length, length=length, end=end)
            assert (len(told["notes"]), told["notes_composed"], told["ended"]) == (length, length, end)


WALTZ = {"style": "chopin", "rendition": "score", "key": "la bemol mayor", "time_signature": "3/4", "tempo": 150, "bars": 8}


def test_a_piece_of_eight_bars_ends_exactly_on_its_barline(service, tmp_path):
    for seed in range(3):
        response = service.compose(seed=seed, **WALTZ)
        assert (response.status_code, response.headers["Nocturne-Ended"]) == (200, "true")
        path = tmp_path / "waltz.mid"
        path.write_bytes(response.content)
        midi = mido.MidiFile(path)
        assert {sum(message.time for message in track) for track in midi.tracks} == {8 * 3 * midi.ticks_per_beat}
        score = symusic.Score(path)
        assert all(0 <= note.start < note.end <= 24 * score.tpq for track in score.tracks for note in track.notes)
        assert [(s.time, s.numerator, s.denominator) for s in score.time_signatures] == [(0, 3, 4)]
        assert [(s.time, s.key, s.tonality) for s in score.key_signatures] == [(0, -4, 0)]
        assert [message.key for message in midi.tracks[0] if message.type == "key_signature"] == ["Ab"]
        for track in midi.tracks:
            pedal = [message.value for message in track if message.type == "control_change" and message.control == 64]
            assert not pedal or pedal[-1] == 0


@pytest.mark.parametrize("rendition", ["score", "performed"])
def test_the_tempo_is_the_one_asked_for(service, rendition):
    told = service.notes(seed=3, length=101, rendition=rendition, tempo=87.5)
    starts, qpm = zip(*((tempo["start"], tempo["qpm"]) for tempo in told["tempos"]), strict=True)
    composed = [qpm[bisect(starts, note["start"]) - 1] for note in told["notes"]]
    assert median(composed) == 87.5


def test_a_melody_counts_among_the_bars(service):
    melody = [{"pitch": name, "duration": 1} for name in ("C4", "E4", "G4", "C5", "B4")]
    told = service.notes(seed=melody, random_seed=1, bars=4, tempo=72, key="C major")
    assert told["tempos"][0] == {"start": 0, "qpm": 72}
    assert told["ended"]
    assert all(note["start"] + note["duration"] <= 16 for note in told["notes"])
    assert min(note["start"] for note in told["notes"] if not note["seed"]) >= 4
    assert service.compose(seed=melody, bars=1).json()["errors"][0]["pointer"] == "/bars"


def test_what_is_asked_for_changes_the_piece_and_the_same_is_the_same_again(service):
    plain = service.compose(seed=4, length=60).content
    for field, value in (("style", "joplin"), ("rendition", "performed"), ("key", "E minor"), ("time_signature", "6/8")):
        asked = service.compose(seed=4, length=60, **{field: value}).content
        assert asked != plain
        assert service.http.get("/generate", params={"seed": 4, "length": 60, field: value}).content == asked
    waltz = service.compose(seed=4, **WALTZ).content
    assert service.http.get("/generate", params={"seed": 4, **WALTZ}).content == waltz


def test_the_model_tells_what_can_be_asked_of_it(service):
    (model,) = service.http.get("/models").json()["models"]
    for style in model["styles"]:
        assert service.compose(seed=1, length=1, style=style).status_code == 200
    assert model["renditions"] == ["score", "performed"]
    assert (len(model["keys"]), len(model["time_signatures"]), len(model["tempo_range"])) == (24, 12, 2)
    assert {"licence", "attribution", "nats_per_note"} <= model.keys()


def test_temperature_0_needs_no_luck_and_one_note_is_not_repeated(service):
    one, other = (service.notes(seed=seed, length=40, temperature=0, end=False)["notes"] for seed in (1, 2))
    assert one == other
    pitches = [note["pitch"] for note in service.notes(seed=1, length=200, end=False)["notes"]]
    assert len(set(pitches)) > 10


def test_answers_go_before_composing(service):
    engine, worker = (os.getpriority(os.PRIO_PROCESS, pid) for pid in (service.engine_pid(), service.worker_pid()))
    assert engine > worker  # the higher, the nicer to others


def test_the_rest_of_the_contract_answers(service):
    for path in ("/models", "/livez", "/readyz", "/openapi.yaml", "/docs"):
        assert service.http.get(path).status_code == 200


@pytest.mark.parametrize(
    ("content", "content_type", "status"),
    [
        (b'{"seed": 42, "length": 64', "application/json", 400),
        (b'{"seed": NaN}', "application/json", 400),
        (b'{"temperature": 7}', "application/json", 422),
        (b'{"lenght": 7}', "application/json", 422),
        (b'{"seed": ["H4"]}', "application/json", 422),
        (b"seed=1", "application/x-www-form-urlencoded", 415),
        (b" " * (2**20 + 1), "application/json", 413),
    ],
)
def test_bad_requests_are_answered_as_problems(service, content, content_type, status):
    response = service.http.post("/generate", content=content, headers={"Content-Type": content_type})
    assert (response.status_code, response.headers["Content-Type"]) == (status, "application/problem+json")
    assert response.json()["status"] == status


def chunked(body: bytes, size: int = 60_000) -> bytes:
    head = (
        b"POST /generate HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
        b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    chunks = (body[i : i + size] for i in range(0, len(body), size))
    return head + b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"


def test_chunked_bodies_are_read_to_the_limit_and_not_beyond(service):
    body = json.dumps({"seed": 42, "length": 8}).encode()
    assert service.send(chunked(body, 5)).content == service.compose(seed=42, length=8).content
    assert service.send(chunked(body.ljust(2**20))).status_code == 200
    refused = service.send(chunked(body.ljust(2**20 + 1)))
    assert (refused.status_code, refused.json()["status"]) == (413, 413)


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"GET / HTTP/9.9\r\n\r\n", 400),
        (b"GET /generate HTTP/1.1\r\nHost: x\r\nBad Header: x\r\n\r\n", 400),
        (b"GET /generate?" + b"a" * 9000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 414),
        (b"GET / HTTP/1.1\r\nHost: x\r\n" + b"".join(b"X-%d: x\r\n" % i for i in range(200)) + b"\r\n", 431),
        (chunked(b"{}").replace(b"2\r\n{}", b"zz\r\n{}"), 400),
        (chunked(b"{}").replace(b"{}\r\n", b"{}xx"), 400),
        (b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Length: x\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: [\r\nConnection: close\r\n\r\n", 404),
        (b"GET /%%%%ff HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 404),
    ],
    ids=["line", "version", "header", "long line", "many headers", "chunk size", "chunk end", "length", "host", "path"],
)
def test_broken_http_is_the_clients_fault_and_told_in_the_same_shape(service, data, status):
    response = service.send(data)
    assert (response.status_code, response.headers["Content-Type"]) == (status, "application/problem+json")
    assert response.json()["status"] == status
    assert service.http.get("/livez").status_code == 200


def test_clients_that_leave_free_their_slots(tmp_path):
    with running(tmp_path / "log", NOCTURNE_CORES="1", NOCTURNE_SLOTS="1", NOCTURNE_QUEUE="100") as service:
        for seed in range(60):  # an hour of music for the one slot
            with service.connect() as connection:
                connection.sendall(request_bytes(seed=seed, length=4096, end=False))
        assert service.compose(seed=1, length=4).status_code == 200


def test_a_client_that_leaves_frees_its_slot_within_two_chunks(tmp_path):
    # One chunk takes long, so that whatever comes between here and there is short beside it.
    with running(tmp_path / "log", NOCTURNE_CORES="1", NOCTURNE_SLOTS="1", NOCTURNE_CHUNK="256") as service:
        with service.connect() as connection:
            connection.sendall(request_bytes(seed=1, length=4096, end=False))
            assert wait_until(lambda: service.metrics()["nocturne_chunks_total"] > 0)
            before = service.metrics()
            assert before["nocturne_slots_in_use"] == 1
        assert wait_until(lambda: service.metrics()["nocturne_slots_in_use"] == 0)
        after = service.metrics()
        assert after["nocturne_requests_cancelled_total"] == 1
        assert after["nocturne_chunks_total"] - before["nocturne_chunks_total"] <= 2
        assert after["nocturne_notes_composed_total"] < 4096
