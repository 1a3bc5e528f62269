"""Every error has one shape, points at the field and is never the service's fault."""

import io
import json

import jsonschema_rs
import pytest

from service.errors import EngineFailed, EngineOverloaded, GenerationTimeout
from service.music.representation import TIME_SIGNATURES
from service.web.contract import Contract
from service.web.metrics import CAUSES
from service.web.refusals import CAUSE

CONTRACT = Contract.load()
PROBLEM = jsonschema_rs.Draft202012Validator(CONTRACT.document["components"]["schemas"]["Problem"])
DOCUMENTED = {int(status) for status in CONTRACT.document["paths"]["/generate"]["post"]["responses"]}
JSON = {"content_type": "application/json"}

# What the sentences say, where they are long.
NAMES = (
    "seed, random_seed, length, bars, style, rendition, key, time_signature, tempo, temperature, min_p, include_seed, end, model"
)
SEED = "an integer (a random seed) or a list of notes (a melody to continue)"
ITEM = "a MIDI number, the name of a note, a list of these (a chord), or an object with `pitch`"
NO_NAME = "not the name of a note; names look like C#4, Db4 or re#4, where C4 is middle C"
NO_COMPOSER = "not a composer that the model knows;"
SEE_MODELS = "/models has them all"
SCHUMANNS = '"Schumann, Clara" or "Schumann, Robert"'
NO_KEY = "not the name of a key; names look like C major, F# minor, la menor or sib mayor"
METRES = ", ".join(f'"{name}"' for name in TIME_SIGNATURES[1:])
TWO_SEEDS = "`random_seed` goes with a melody; `seed` is an integer already: give one of them"


def check_problem(response, status):
    assert response.status_code == status
    assert response.mimetype == "application/problem+json"
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    body = response.get_json()
    PROBLEM.validate(body)
    assert body["status"] == status
    return body


def refuse(client, fields):
    body = check_problem(client.post("/generate", json=fields), 422)
    return [(error["pointer"], error["detail"]) for error in body["errors"]]


@pytest.mark.parametrize(
    ("fields", "where", "what"),
    [
        ({"temperature": 7}, "/temperature", "`temperature` must be in [0, 2]; got 7"),
        ({"length": "64"}, "/length", '`length` must be an integer; got "64"'),
        ({"length": 1.5}, "/length", "`length` must be an integer; got 1.5"),
        ({"length": None}, "/length", "`length` must be an integer; got null"),
        ({"length": True}, "/length", "`length` must be an integer; got true"),
        ({"min_p": [0]}, "/min_p", "`min_p` must be a number; got [0]"),
        ({"end": 0}, "/end", "`end` must be true or false; got 0"),
        ({"lenght": 64}, "/lenght", "`lenght` is not a field; did you mean `length`?"),
        ({"a/b~": 1}, "/a~1b~0", f"`a/b~` is not a field; there are {NAMES}"),
        ({"seed": "C4"}, "/seed", f'`seed` must be {SEED}; got "C4"'),
        ({"seed": -1}, "/seed", "`seed` must be in [0, 9007199254740991]; got -1"),
        ({"seed": []}, "/seed", "`seed` must be a list of 1 to 2048 items, not 0; got []"),
        ({"seed": [60, None]}, "/seed/1", f"`seed[1]` must be {ITEM}; got null"),
        ({"seed": [5]}, "/seed/0", "`seed[0]` must be in [21, 108], the keys of the piano; got 5"),
        ({"seed": [[60, [62]]]}, "/seed/0/1", "`seed[0][1]` must be a MIDI number or the name of a note; got [62]"),
        ({"seed": [{"pich": 60}]}, "/seed/0/pitch", "`seed[0].pitch` is missing"),
        ({"seed": [{"pitch": 60, "hand": "both"}]}, "/seed/0/hand", '`seed[0].hand` must be one of "right", "left"; got "both"'),
        ({"seed": ["H4"]}, "/seed/0", f'`seed[0]` is "H4": {NO_NAME}'),
        ({"seed": ["C9"]}, "/seed/0", '`seed[0]` is "C9": outside the piano, whose keys run from A0 to C8'),
        ({"seed": [["C4", 60]]}, "/seed/0", "`seed[0]` strikes C4 (60) twice at 0 quarter notes"),
        ({"seed": 1, "random_seed": 1}, "/random_seed", TWO_SEEDS),
        ({"model": "other"}, "/model", '`model` must be one of "fake"; got "other"'),
        ({"style": 5}, "/style", "`style` must be a string; got 5"),
        ({"style": ""}, "/style", '`style` must be 1 to 100 characters long; got ""'),
        ({"style": "chopen"}, "/style", f'`style` is "chopen": {NO_COMPOSER} did you mean "Chopin, Fryderyk"? {SEE_MODELS}'),
        ({"style": "xyzzy"}, "/style", f'`style` is "xyzzy": {NO_COMPOSER} {SEE_MODELS}'),
        ({"style": "schumann"}, "/style", f'`style` is "schumann": several composers have that name: {SCHUMANNS}; {SEE_MODELS}'),
        ({"rendition": "played"}, "/rendition", '`rendition` must be one of "score", "performed"; got "played"'),
        ({"key": "H major"}, "/key", f'`key` is "H major": {NO_KEY}'),
        ({"key": "sib"}, "/key", '`key` is "sib": the name of a key needs its mode, as in sib major or sib minor'),
        ({"key": "x" * 41}, "/key", f'`key` must be 1 to 40 characters long; got "{"x" * 41}"'),
        ({"time_signature": "7/8"}, "/time_signature", f'`time_signature` must be one of {METRES}; got "7/8"'),
        ({"time_signature": "4"}, "/time_signature", f'`time_signature` must be one of {METRES}; got "4"'),
        ({"time_signature": "6/8"}, "/time_signature", '`time_signature` is "6/8": the model knows only "4/4", "3/4"'),
        ({"tempo": 19.5}, "/tempo", "`tempo` must be in [20, 300]; got 19.5"),
        ({"tempo": "allegro"}, "/tempo", '`tempo` must be a number; got "allegro"'),
        ({"bars": 0}, "/bars", "`bars` must be in [1, 128]; got 0"),
        ({"bars": 1.5}, "/bars", "`bars` must be an integer; got 1.5"),
        ({"bars": 8, "length": 64}, "/length", "`length` and `bars` both say how long the piece is: give one of them"),
        ({"bars": 8, "end": False}, "/end", "`end` must be true with `bars`, which ask for an end at a barline; got false"),
        (
            {"bars": 2, "seed": [{"pitch": 60, "duration": 7.5}]},
            "/bars",
            "`bars` must be more than 2.5, which the melody fills in 3/4; got 2",
        ),
    ],
)  # fmt: skip
def test_refusals_point_at_the_field_and_say_what_is_wrong(client, fields, where, what):
    assert (where, what) in refuse(client, fields)


def test_everything_that_a_model_does_not_know_is_named_at_once(client):
    asked = {"style": "nobody", "key": "H major", "time_signature": "6/8"}
    assert [where for where, _ in refuse(client, asked)] == [f"/{field}" for field in asked]
    both = refuse(client, {"bars": 1, "length": 4, "end": False, "seed": [{"pitch": 60, "duration": 4}]})
    assert [where for where, _ in both] == ["/length", "/end", "/bars"]


@pytest.mark.parametrize(
    ("field", "value", "plural"),
    [
        ("style", "chopin", "styles"),
        ("rendition", "score", "renditions"),
        ("key", "C major", "keys"),
        ("time_signature", "4/4", "time signatures"),
        ("tempo", 90, "tempos"),
    ],
)
def test_a_model_that_knows_no_conditions_says_so(bare_client, field, value, plural):
    ((where, what),) = refuse(bare_client, {field: value})
    assert where == f"/{field}"
    assert what == f"`{field}` is {json.dumps(value)}: the model fake knows no {plural}; /models has what can be asked of it"
    assert bare_client.post("/generate", json={"bars": 2}).status_code == 200


def test_all_fields_at_fault_are_named_at_once_but_not_endlessly(client):
    several = refuse(client, {"length": 0, "temperature": 9, "min_p": 2})
    assert {where for where, _ in several} == {"/length", "/temperature", "/min_p"}
    assert len(refuse(client, {"seed": [None] * 100})) == 20
    assert len(refuse(client, {"seed": ["H4"] * 100})) == 20


def test_long_values_are_cut_in_messages(client):
    ((_, what),) = refuse(client, {"length": "x" * 5000})
    assert len(what) < 120


@pytest.mark.parametrize(
    ("query", "where", "what"),
    [
        ("length=abc", "/length", '`length` must be an integer; got "abc"'),
        ("length=", "/length", '`length` must be an integer; got ""'),
        ("length=1&length=1", "/length", "`length` must be given once"),
        ("temperature=nan", "/temperature", '`temperature` must be a number; got "nan"'),
        ("temperature=1e999", "/temperature", '`temperature` must be a number; got "1e999"'),
        ("seed=[60]", "/seed", '`seed` must be an integer; got "[60]"'),
        (
            "seed=1&random_seed=1",
            "/random_seed",
            TWO_SEEDS,
        ),
        ("bars=4&length=4", "/length", "`length` and `bars` both say how long the piece is: give one of them"),
        ("time_signature=3%2F5", "/time_signature", f'`time_signature` must be one of {METRES}; got "3/5"'),
        ("key=F#+minor", "/key", '`key` is "F": the name of a key needs its mode, as in F major or F minor'),  # F%23 was meant
        ("style=7", "/style", "`style` must be a string; got 7"),
        ("end=no", "/end", '`end` must be true or false; got "no"'),
        ("sed=1", "/sed", "`sed` is not a field; did you mean `seed`?"),
        ("length=" + "9" * 10_000, "/length", '`length` must be an integer; got "' + "9" * 58 + "…"),
    ],
)
def test_query_parameters_are_refused_alike(client, query, where, what):
    body = check_problem(client.get(f"/generate?{query}"), 422)
    assert {"pointer": where, "detail": what} in body["errors"]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"nonsense",
        b'{"length": NaN}',
        b'{"length": 1e999}',
        b"\xff\xfe",
        b'"\\ud800"',
        b"[" * 10_000,
        b"\xef\xbb\xbf{}",
        b"{} {}",
    ],
)
def test_what_is_not_json_is_malformed(client, body):
    problem = check_problem(client.post("/generate", data=body, **JSON), 400)
    assert problem["errors"][0]["pointer"] == ""


@pytest.mark.parametrize("body", [b"[]", b"null", b"1", b'"seed"', b"true"])
def test_json_that_is_no_object_is_refused(client, body):
    problem = check_problem(client.post("/generate", data=body, **JSON), 422)
    assert problem["errors"] == [{"pointer": "", "detail": f"the request must be an object of fields; got {body.decode()}"}]


@pytest.mark.parametrize(
    "media_type",
    ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "application/json; charset=latin1", "x", ""],
)
def test_other_media_types_are_refused(client, media_type):
    check_problem(client.post("/generate", data=b'{"length": 4}', content_type=media_type), 415)


def test_compressed_bodies_are_refused(client):
    check_problem(client.post("/generate", data=b"{}", headers={"Content-Encoding": "gzip"}, **JSON), 415)


def test_a_body_over_the_limit_is_refused_with_or_without_its_length(client):
    over, under = b" " * 19_999 + b"{}", b" " * 19_998 + b"{}"
    assert client.post("/generate", data=under, **JSON).status_code == 200
    check_problem(client.post("/generate", data=over, **JSON), 413)
    for body, status in ((under, 200), (over, 413)):
        chunked = {"wsgi.input": io.BytesIO(body), "wsgi.input_terminated": True, "CONTENT_TYPE": "application/json"}
        response = client.post("/generate", environ_overrides={**chunked, "HTTP_TRANSFER_ENCODING": "chunked"})
        assert response.status_code == status


def test_a_body_that_breaks_off_is_malformed(client):
    body = {"wsgi.input": io.BytesIO(b"{"), "CONTENT_LENGTH": "9", "CONTENT_TYPE": "application/json"}
    assert (
        check_problem(client.post("/generate", environ_overrides=body), 400)["detail"] == "the body broke off after 1 of 9 bytes"
    )


class BrokenStream:
    def __init__(self, error):
        self.error = error

    def read(self, size):
        raise self.error


def test_a_body_that_does_not_arrive_is_the_clients_fault(client):
    from gunicorn.http.errors import ChunkMissingTerminator, InvalidChunkSize, NoMoreData

    for error in (ConnectionResetError(), InvalidChunkSize(b"x"), ChunkMissingTerminator(b""), NoMoreData()):
        body = {"wsgi.input": BrokenStream(error), "CONTENT_LENGTH": "9", "CONTENT_TYPE": "application/json"}
        check_problem(client.post("/generate", environ_overrides=body), 400)


@pytest.mark.parametrize("accept", ["text/html", "image/*", "audio/midi;q=0", "audio/wav, text/plain", "nonsense"])
def test_what_cannot_be_answered_is_not_acceptable(client, accept):
    check_problem(client.get("/generate", headers={"Accept": accept}), 406)


def test_unknown_paths_and_methods(client):
    for path in ("/", "/generate/", "//generate", "/Generate", "/static/x", "/docs/../x", "/%00", "/%ff"):
        check_problem(client.get(path), 404)
    for path in ("/generate", "/models", "/livez", "/docs"):
        response = client.delete(path)
        check_problem(response, 405)
        assert "GET" in response.headers["Allow"]
    assert client.options("/generate").headers["Allow"]


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (EngineOverloaded("the queue is full"), 503),
        (EngineFailed("it ended"), 503),
        (GenerationTimeout("late"), 504),
        (RuntimeError("a bug"), 500),
    ],
)
def test_the_engines_errors_have_their_status(client, engine, error, status):
    for place in ("failure", "outcome"):
        setattr(engine, place, error)
        response = client.post("/generate", json={})
        body = check_problem(response, status)
        assert ("Retry-After" in response.headers) == (status == 503)
        assert "a bug" not in body["detail"]
        engine.failure = engine.outcome = None


def test_an_engine_that_does_not_answer_is_given_up_at_the_deadline(client, engine):
    engine.stuck = True
    check_problem(client.post("/generate", json={}), 504)
    assert engine.gave_up.is_set()


def test_not_ready_is_said_and_to_be_tried_again(client, engine):
    assert client.get("/readyz").get_json() == {"status": "ready", "model": "fake", "provider": "cpu"}
    engine.ready = False
    response = client.get("/readyz")
    check_problem(response, 503)
    assert response.headers["Retry-After"] == "1"
    assert client.get("/livez").status_code == 200


def test_every_cause_of_a_refusal_is_one_that_the_metric_begins_with():
    assert set(CAUSE.values()) | {"stopping", "client left", "fault", "too slow", "http"} == set(CAUSES)


def test_every_status_of_generate_is_documented():
    assert DOCUMENTED == {200, 400, 401, 406, 408, 413, 415, 422, 429, 503, 504}


# What could stand in a request: anything at all, and things that are nearly right.
@pytest.mark.parametrize("body", ["[" * 300 + "]" * 300, '{"seed": ' + "[" * 300 + "]" * 300 + "}"])
def test_deep_nesting_is_refused_in_words(client, body):
    response = client.post("/generate", data=body, content_type="application/json")
    assert response.status_code == 422
    assert "nested too deeply" in response.get_data(as_text=True) or response.json["errors"]


def test_a_melody_of_nothing_but_collisions_is_refused_after_a_few(client):
    item = {"pitch": [60] * 10, "start": 0, "duration": 16}
    response = client.post("/generate", json={"seed": [item] * 100})
    assert response.status_code == 422
    assert 1 <= len(response.json["errors"]) <= 20
