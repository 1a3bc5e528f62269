"""Whatever a client sends is answered, and is never the service's fault: random JSON, bytes, queries and MIDI files, and bombs.

`make fuzz` runs this with 100,000 examples of each; the tests run a few hundred.
"""

import json
import resource
import signal
import struct
from collections import deque

import jsonschema_rs
import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.config import ServiceConfig
from service.music.midi_writer import write_midi
from service.music.piece import NOTE, PEDAL, TEMPO, KeySignature, Piece, TimeSignature, records, sort_notes
from service.web.app import create_app
from service.web.upload import MAX_FILE_BYTES
from service.web.violations import explain
from tests.contract.conftest import FakeEngine
from tests.contract.test_errors import CONTRACT, DOCUMENTED, check_problem

FUZZ = settings(max_examples=max(300, settings.default.max_examples), suppress_health_check=list(HealthCheck))
HANG_S = 60  # after which something hangs, however busy the machine
# Of memory, beyond what the process has when the tests begin; hypothesis itself remembers all examples.
ROOM_BYTES = 2**29 + FUZZ.max_examples * 2**16


@pytest.fixture(scope="module")
def client():
    """A client of a service that remembers nothing, in a process that may not grow for ever."""
    engine = FakeEngine()
    engine.submitted = deque(maxlen=1)
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm") as statm:
        size = int(statm.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + ROOM_BYTES, hard))
    yield create_app(ServiceConfig(access_log="off"), engine).test_client()
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@pytest.fixture(autouse=True)
def no_hang():
    def hangs(number, frame):
        raise TimeoutError("it hangs")

    before = signal.signal(signal.SIGALRM, hangs)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def status_of(response) -> int:
    """Return the status of an answer, whose errors have their shape; whatever took it so long has begun anew."""
    signal.alarm(HANG_S)
    if response.status_code != 200:
        check_problem(response, response.status_code)
    return response.status_code


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=10,
)
PITCHES = st.integers(15, 115) | st.sampled_from(["C4", "do#5", "si3", "H2", "mib3", "A0", "C9"]) | ANYTHING
NOTES = st.fixed_dictionaries(
    {"pitch": PITCHES | st.lists(PITCHES, max_size=3)},
    optional={
        "start": st.floats(-1, 5000) | ANYTHING,
        "duration": st.floats(0, 17) | ANYTHING,
        "velocity": st.integers(0, 130) | ANYTHING,
        "hand": st.sampled_from(["right", "left"]) | ANYTHING,
    },
)
FIELDS = st.fixed_dictionaries(
    {},
    optional={
        "seed": st.integers(-1, 2**54) | st.lists(PITCHES | st.lists(PITCHES, max_size=4) | NOTES, max_size=8) | ANYTHING,
        "random_seed": st.integers(-1, 2**54) | ANYTHING,
        "length": st.integers(0, 200) | ANYTHING,
        "temperature": st.floats(0, 2) | ANYTHING,
        "min_p": st.floats(0, 1) | ANYTHING,
        "include_seed": st.booleans() | ANYTHING,
        "end": st.booleans() | ANYTHING,
        "bars": st.integers(0, 20) | ANYTHING,
        "style": st.sampled_from(["chopin", "Bach, J. S.", "schumann", "?"]) | st.text(max_size=12) | ANYTHING,
        "rendition": st.sampled_from(["score", "performed"]) | ANYTHING,
        "key": st.sampled_from(["C major", "si bemol menor", "G## major", "H"]) | st.text(max_size=12) | ANYTHING,
        "time_signature": st.sampled_from(["4/4", "3/4", "6/8", "other"]) | ANYTHING,
        "tempo": st.floats(19, 301) | ANYTHING,
        "model": st.just("fake") | ANYTHING,
    },
)


@FUZZ
@given(fields=FIELDS | ANYTHING, accept=st.sampled_from(["*/*", "application/json"]))
def test_no_json_that_a_client_can_send_is_the_services_fault(client, fields, accept):
    response = client.post("/generate", json=fields, headers={"Accept": accept})
    assert status_of(response) in {200, 400, 422}  # 400: JSON of Python's that is none


@FUZZ
@given(fields=(FIELDS | ANYTHING).map(lambda fields: orjson.loads(json.dumps(fields))))
def test_what_the_validator_refuses_is_explained_and_nothing_else(fields):
    schema = CONTRACT.operations["generate"].schema
    accepted = jsonschema_rs.Draft202012Validator(dict(schema)).is_valid(fields)
    assert accepted == (next(explain(fields, schema, schema), None) is None)


@FUZZ
@given(
    body=st.binary(max_size=200),
    media_type=st.sampled_from(["application/json", "text/plain", ""]) | st.text('abc/;=" ,*', max_size=12),
)
def test_no_bytes_that_a_client_can_send_are_the_services_fault(client, body, media_type):
    assert status_of(client.post("/generate", data=body, content_type=media_type)) in DOCUMENTED - {503, 504}


@FUZZ
@given(query=st.text("seedlngth=&%+0123456789.-[]", max_size=30), accept=st.text("audiomx/*;q=.0123456789, ", max_size=20))
def test_no_query_that_a_client_can_send_is_the_services_fault(client, query, accept):
    assert status_of(client.get("/generate", query_string=query, headers={"Accept": accept})) in {200, 406, 422}


# The last three are numbers of variable length, of which the standard allows the first.
ODD_BYTES = [
    b"\x00",
    b"\xff",
    b"\x7f",
    b"\x80",
    b"\x90",
    b"\xf0",
    b"\xff\xff\xff\x7f",
    b"\xff" * 9 + b"\x7f",
    b"\xff" * 200 + b"\x7f",
]


@st.composite
def mutated(draw, seeds: list[bytes], most: int = 8):
    """Return one of some byte strings with a few things wrong with it: the mutations that fuzzers of file formats use."""
    data = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(1, most))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        length = draw(st.integers(1, 12))
        what = draw(st.sampled_from(["flip", "set", "insert", "cut", "repeat", "swap", "end"]))
        if what == "flip" and data:
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif what == "set":
            data[at : at + 1] = draw(st.sampled_from(ODD_BYTES))
        elif what == "insert":
            data[at:at] = draw(st.binary(min_size=1, max_size=length))
        elif what == "cut":
            del data[at : at + length]
        elif what == "repeat":
            data[at:at] = bytes(data[at : at + length]) * draw(st.sampled_from([1, 2, 50]))
        elif what == "swap":
            to = draw(st.integers(0, max(0, len(data) - 1)))
            data[at : at + length], data[to : to + length] = data[to : to + length], data[at : at + length]
        else:
            del data[at:]
    return bytes(data)


def tunes() -> list[bytes]:
    """Return MIDI files with all that ours know: hands, tempos, pedal, metres, keys, texts."""
    rows = [(12 * i, 40 + 7 * i % 48, 6 + i, 20 + i, 1 + i % 2) for i in range(24)]
    pieces = [
        Piece(sort_notes(records(NOTE, rows)), time_signatures=(TimeSignature(0, 4, 4),)),
        Piece(
            sort_notes(records(NOTE, rows[:5])),
            records(TEMPO, [(0, 90.0), (24, 130.5)]),
            records(PEDAL, [(0, True), (30, False)]),
            (TimeSignature(0, 3, 4), TimeSignature(72, 6, 8)),
            (KeySignature(0, -3, True),),
            title="Título",
            copyright="Nobody",
        ),
    ]
    running = b"".join(struct.pack("BBB", 10, 60 + i % 12, 64 * (i % 2)) for i in range(40))
    return [*(write_midi(piece) for piece in pieces), midi([b"\x00\x90\x3c\x40" + running])]


def midi(tracks: list[bytes], count: int | None = None, resolution: int = 480, format: int = 1) -> bytes:
    """Return a MIDI file of tracks, which says that it has `count` of them."""
    head = b"MThd" + struct.pack(">IHHH", 6, format, len(tracks) if count is None else count, resolution)
    return head + b"".join(b"MTrk" + struct.pack(">I", len(track)) + track for track in tracks)


BODIES = [
    b'{"seed": 42, "length": 8}',
    b'{"seed": ["C4", "mib4", 67, ["C4", "E4"]], "random_seed": 7, "length": 3, "end": false}',
    b'{"seed": [{"pitch": "E4", "start": 0.5, "duration": 1, "velocity": 80, "hand": "left"}], "bars": 4, "tempo": 96.5}',
    b'{"style": "bach", "rendition": "score", "key": "Bb major", "time_signature": "3/4", "temperature": 1e-1, "min_p": 0}',
]


@FUZZ
@given(data=mutated(tunes()), query=st.sampled_from(["", "seed=1&length=4", "bars=2", "include_seed=false&length=2"]))
def test_no_midi_file_that_a_client_can_send_is_the_services_fault(client, data, query):
    response = client.post(f"/generate?{query}", data=data, content_type="audio/midi")
    assert status_of(response) in {200, 400, 413, 422}


@FUZZ
@given(body=mutated(BODIES))
def test_no_broken_json_is_the_services_fault(client, body):
    assert status_of(client.post("/generate", data=body, content_type="application/json")) in {200, 400, 422}


STRUCK = b"\x00\x90\x3c\x40"
ENDED = STRUCK + b"\x60\x3c\x00"
BOMBS = {
    "a million notes": (midi([STRUCK + b"\x01\x3c\x40" * 10**6]), 413),
    "as many notes as a file can hold": (midi([STRUCK + b"\x40\x3c\x40" * 21_000]), 422),
    "65,535 tracks in the head": (midi([STRUCK], 65_535), 422),
    "as many tracks as a file can hold": (midi([b""] * 8000), 422),
    "endless ticks": (midi([b"\xff\xff\xff\x7f\x90\x3c\x40" * 9000]), 422),
    "a time that no machine word holds": (midi([ENDED + b"\xff" * 9 + b"\x7f\xff\x51\x03\x07\xa1\x20"]), 422),
    "a time of as many bytes as are read": (
        midi([ENDED + (b"\xff" * 2048 + b"\x7f\xff\x51\x03\x07\xa1\x20") * 30]),
        422,
    ),
    "a time of as many bytes as a file can hold": (
        midi([ENDED + b"\xff" * 65_000 + b"\x7f\xff\x58\x04\x04\x02\x18\x08"]),
        422,
    ),
    "a track longer than the file": (b"MThd" + struct.pack(">IHHH", 6, 1, 1, 480) + b"MTrk\xff\xff\xff\xff" + STRUCK, 422),
    "a text longer than the file": (midi([b"\x00\xff\x01\xff\xff\xff\x7f"]), 422),
    "tempo zero": (midi([b"\x00\xff\x51\x03\x00\x00\x00" + STRUCK]), 200),
    "no ticks a quarter note": (midi([STRUCK], resolution=0), 422),
    "one tick a quarter note": (midi([STRUCK + b"\x7f\x3c\x00"], resolution=1), 200),
    "frames a second": (midi([STRUCK], resolution=0xE728), 422),
    "nothing but tempos": (midi([b"\x00\xff\x51\x03\x07\xa1\x20" * 9000]), 422),
    "nothing but pedals": (midi([b"\x00\xb0\x40\x7f\x01\x40\x00" * 9000]), 422),
    "nothing but system messages": (midi([b"\x00\xf0\x01\xf7" * 16_000]), 422),
    "a metre of 255 over 2 to the 255": (midi([b"\x00\xff\x58\x04\xff\xff\x18\x08" + ENDED]), 200),
}


@pytest.mark.parametrize(("data", "status"), BOMBS.values(), ids=BOMBS)
def test_a_bomb_does_not_go_off(client, data, status):
    assert status in (200, 413) or len(data) <= MAX_FILE_BYTES
    assert status_of(client.post("/generate?seed=1&length=2", data=data, content_type="audio/midi")) == status
