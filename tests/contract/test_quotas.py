"""Who may ask, and for how much: API keys, notes a minute, origins, proxies, and what an answer tells a browser."""

import subprocess
import sys
from dataclasses import replace

import pytest

from service.config import InvalidSetting, ServiceConfig
from service.errors import EngineOverloaded
from service.web import quotas
from service.web.app import create_app
from service.web.quotas import hash_key
from tests.contract.conftest import FakeEngine

ZEROS = "0" * 64
ENTRY = f"[[keys]]\nname = 'a'\nsha256 = '{ZEROS}'\n"
KEYS = {"conservatory": "nocturne_abc", "school": "nocturne_xyz"}


@pytest.fixture
def keys_file(tmp_path):
    path = tmp_path / "keys.toml"
    entries = (f'[[keys]]\nname = "{name}"\nsha256 = "{hash_key(key)}"\n' for name, key in KEYS.items())
    path.write_text("\n".join(entries) + "notes_per_minute = 100\n")
    return path


def client_of(engine=None, **settings):
    return create_app(ServiceConfig(**settings), engine or FakeEngine()).test_client()


def with_key(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def test_with_keys_only_who_has_one_composes_and_the_rest_is_open(keys_file):
    client = client_of(api_keys_file=keys_file)
    for key in KEYS.values():
        assert client.get("/generate?seed=1&length=4", headers=with_key(key)).status_code == 200
        assert client.post("/generate", json={"length": 4}, headers={"Authorization": f"bearer {key}"}).status_code == 200
    for path in ("/models", "/livez", "/readyz", "/openapi.yaml", "/docs", "/metrics"):
        assert client.get(path).status_code == 200


NO_KEYS = [None, "", "Bearer", "Bearer ", "Bearer nocturne_abd", "Bearer nocturne_ab", "Basic nocturne_abc", "nocturne_abc"]
NO_KEYS += ["Bearer nocturne_abc nocturne_abc", "Bearer é", "Bearer " + "x" * 5000]


@pytest.mark.parametrize("authorization", NO_KEYS)
def test_without_a_key_that_is_ours_nothing_is_composed_nor_read(keys_file, authorization):
    engine = FakeEngine()
    client = client_of(engine, api_keys_file=keys_file)
    headers = {} if authorization is None else {"Authorization": authorization.encode().decode("latin1")}
    for response in (client.get("/generate", headers=headers), client.post("/generate", data=b"{" * 9, headers=headers)):
        assert (response.status_code, response.headers["WWW-Authenticate"]) == (401, "Bearer")
        assert response.json["detail"].startswith("`Authorization` ")
        assert "nocturne_a" not in response.text
    assert not engine.submitted


def test_a_file_of_no_keys_lets_nobody_in(tmp_path):
    path = tmp_path / "keys.toml"
    path.write_text("keys = []")
    assert client_of(api_keys_file=path).get("/generate", headers=with_key("nocturne_abc")).status_code == 401


def test_the_file_holds_no_key_and_the_log_neither(keys_file, caplog):
    assert not any(key in keys_file.read_text() for key in KEYS.values())
    client = client_of(api_keys_file=keys_file)
    with caplog.at_level("INFO"):
        client.get("/generate?length=4", headers=with_key(KEYS["school"]))
        client.get("/generate?length=4", headers=with_key("nocturne_other"))
    assert not any(key in caplog.text for key in (*KEYS.values(), "nocturne_other"))


def test_a_new_key_is_made_and_works(tmp_path):
    command = [sys.executable, "-m", "service.keys", 'Música "sur"', "--notes-per-minute", "500"]
    made = subprocess.run(command, capture_output=True, text=True, check=True)
    key = made.stderr.split()[-1]
    assert key not in made.stdout
    (tmp_path / "keys.toml").write_text(made.stdout * 1, encoding="utf-8")
    client = client_of(api_keys_file=tmp_path / "keys.toml")
    assert client.get("/generate?length=4", headers=with_key(key)).status_code == 200
    assert client.get("/generate?length=501", headers=with_key(key)).status_code == 429


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must hold [[keys]] and nothing else, or `keys = []` to let nobody in; it has nothing"),
        ("keys = 1", "must hold [[keys]] and nothing else, or `keys = []` to let nobody in; it has keys"),
        ("[[keys]]\n[other]", "must hold [[keys]] and nothing else, or `keys = []` to let nobody in; it has keys, other"),
        ("[[keys", "must be TOML in UTF-8: "),
        ("[[keys]]\nname = 'a'", "key 1: `sha256` must be 64 hexadecimal digits"),
        (f"[[keys]]\nsha256 = '{ZEROS}'", "key 1: `name` must be 1 to 100 characters"),
        (f'[[keys]]\nname = "a\\nb"\nsha256 = "{ZEROS}"', "key 1: `name` must be 1 to 100 characters"),
        (f"[[keys]]\nname = 'a'\nsha256 = '{'A' * 64}'", "key 1: `sha256` must be 64 hexadecimal digits"),
        (ENTRY + "quota = 1", "key 1 must have `name`, `sha256` and perhaps"),
        (ENTRY + "notes_per_minute = true", "key 1: `notes_per_minute` must be a whole number"),
        (ENTRY + "notes_per_minute = -1", "key 1: `notes_per_minute` must be in [0, 1000000000]; got -1"),
        (ENTRY * 2, "key 2: `name` and `sha256` must not be those of another key"),
    ],
)
def test_a_file_of_keys_that_is_none_fails_the_start_with_a_sentence(tmp_path, text, message):
    path = tmp_path / "keys.toml"
    path.write_text(text)
    with pytest.raises(InvalidSetting) as caught:
        client_of(api_keys_file=path)
    assert str(caught.value).startswith(f"`NOCTURNE_API_KEYS_FILE` ({path})")
    assert message in str(caught.value)
    with pytest.raises(InvalidSetting, match="cannot be read: No such file"):
        client_of(api_keys_file=tmp_path / "none.toml")


@pytest.fixture
def clock(monkeypatch):
    """The limiter's clock, which a test sets; it only moves when told to."""

    class Clock:
        now = 1000.0

    monkeypatch.setattr("throttled.utils.now_mono_f", lambda: Clock.now)
    return Clock


def test_notes_a_minute_run_out_and_come_back(clock):
    engine = FakeEngine()
    client = client_of(engine, notes_per_minute=100)
    assert [client.get(f"/generate?length={length}").status_code for length in (60, 40)] == [200, 200]
    refused = client.get("/generate?length=20")
    assert (refused.status_code, refused.headers["Retry-After"]) == (429, "12")
    assert refused.headers["RateLimit-Policy"] == '"notes";q=100;w=60'
    assert refused.headers["RateLimit"] == '"notes";r=0;t=12'
    assert refused.json["detail"] == "the piece costs 20 notes, and 0 of 100 a minute are left; try again in 12 s"
    assert len(engine.submitted) == 2
    clock.now += 11
    assert client.get("/generate?length=20").status_code == 429
    clock.now += 1.01
    assert client.get("/generate?length=20").status_code == 200
    assert client.get("/generate?length=1").status_code == 429
    clock.now += 60
    assert client.get("/generate?length=100").status_code == 200


def test_a_request_costs_what_it_makes_the_engine_do(clock):
    melody = ["C4", "E4", "G4"]
    client = client_of(notes_per_minute=100)
    assert client.post("/generate", json={"seed": melody, "length": 97}).status_code == 200
    assert client.get("/generate?length=1").status_code == 429
    clock.now += 60
    assert client.get("/generate?bars=8&time_signature=3/4").status_code == 200  # 8 bars of 3 quarters, 4 notes each
    assert client.get("/generate?length=5").status_code == 429
    assert client.get("/generate?length=4").status_code == 200


def test_what_can_never_be_had_is_said_so(clock):
    refused = client_of(notes_per_minute=100).get("/generate?length=101")
    assert refused.status_code == 429
    assert refused.json["detail"] == "the piece costs 101 notes, more than the 100 a minute that are allowed; ask for fewer"


def test_a_refusal_costs_nothing(clock):
    engine = FakeEngine()
    client = client_of(engine, notes_per_minute=100)
    for _ in range(5):
        assert client.get("/generate?length=0").status_code == 422
        assert client.get("/generate?length=101").status_code == 429
    engine.failure = EngineOverloaded("the queue is full")
    assert [client.get("/generate?length=100").status_code for _ in range(3)] == [503] * 3
    engine.failure = None
    assert client.get("/generate?length=100").status_code == 200


def test_each_client_has_notes_of_its_own(clock, keys_file):
    client = client_of(notes_per_minute=100)

    def status(address: str, length: int) -> int:
        return client.get(f"/generate?length={length}", environ_base={"REMOTE_ADDR": address}).status_code

    assert [status("192.0.2.1", 100), status("192.0.2.1", 1), status("192.0.2.2", 100)] == [200, 429, 200]
    # One subscriber has a network of IPv6 addresses.
    assert [status("2001:db8::1", 100), status("2001:db8::2", 1), status("2001:db8:0:1::1", 100)] == [200, 429, 200]
    # As a proxy may write them: with a port, in brackets, an address of IPv4 as one of IPv6.
    assert [status("192.0.2.1:4711", 1), status("::ffff:192.0.2.1", 1), status("[2001:db8::3]:4711", 1)] == [429] * 3
    assert [status("::ffff:192.0.2.3", 100), status("::ffff:192.0.2.4", 100), status("[2001:db8:0:2::1]", 100)] == [200] * 3
    keyed = client_of(api_keys_file=keys_file, notes_per_minute=50)
    asked = [("conservatory", 50), ("conservatory", 1), ("school", 100), ("school", 1)]  # the second has a quota of its own
    statuses = [keyed.get(f"/generate?length={n}", headers=with_key(KEYS[name])).status_code for name, n in asked]
    assert statuses == [200, 429, 200, 429]


def test_buckets_do_not_grow_without_bound(clock, monkeypatch):
    monkeypatch.setattr(quotas, "MAX_CLIENTS", 10)
    found = quotas.Quotas(ServiceConfig(notes_per_minute=100))
    for i in range(1000):
        found.charge(found.identify(None, f"192.0.2.{i % 256}.{i}"), 1)
    assert len(found._store._backend.get_client()) <= 10


def test_only_as_many_proxies_are_believed_as_there_are(clock):
    def left(proxies: int, forwarded: str) -> list[int]:
        client = client_of(notes_per_minute=100, proxies=proxies)
        headers = [{"X-Forwarded-For": forwarded}, {"X-Forwarded-For": forwarded.replace("192.0.2.1", "192.0.2.9")}]
        return [client.get("/generate?length=100", headers=header).status_code for header in headers]

    assert left(0, "192.0.2.1") == [200, 429], "whoever comes without a proxy could say anything"
    assert left(1, "192.0.2.1") == [200, 200]
    assert left(1, "192.0.2.1, 198.51.100.7") == [200, 429], "the client wrote the first one itself"
    assert left(2, "192.0.2.1, 198.51.100.7") == [200, 200]


def test_pages_of_the_origins_allowed_may_call_and_others_not():
    client = client_of(cors_origins=("https://example.org", "http://localhost:3000"))
    for origin in ("https://example.org", "http://localhost:3000"):
        response = client.get("/generate?seed=1&length=4", headers={"Origin": origin})
        assert response.headers["Access-Control-Allow-Origin"] == origin
        assert response.headers.getlist("Vary") == ["Accept, Origin"]
        assert "Nocturne-Seed" in response.headers["Access-Control-Expose-Headers"]
        refused = client.get("/generate?length=0", headers={"Origin": origin})
        assert (refused.status_code, refused.headers["Access-Control-Allow-Origin"]) == (422, origin)
        asks = {"Origin": origin, "Access-Control-Request-Method": "POST"}
        asks["Access-Control-Request-Headers"] = "authorization, content-type"
        allowed = client.options("/generate", headers=asks)
        assert allowed.status_code == 200
        assert "POST" in allowed.headers["Access-Control-Allow-Methods"]
        assert allowed.headers["Access-Control-Allow-Headers"] == "authorization, content-type"
        assert "Access-Control-Allow-Credentials" not in allowed.headers
    for origin in ("https://evil.org", "https://example.org.evil.org", "https://notexample.org", "null", "http://example.org"):
        for response in (client.get("/generate?length=4", headers={"Origin": origin}), client.get("/metrics")):
            assert "Access-Control-Allow-Origin" not in response.headers
    # What a cache keeps of one origin, or of none, is not for the page of another.
    for headers in ({}, {"Origin": "https://evil.org"}, {"If-None-Match": client.get("/generate?seed=1").headers["ETag"]}):
        assert "Origin" in client.get("/generate?seed=1", headers=headers).vary
    assert client_of(cors_origins=("*",)).get("/models", headers={"Origin": "https://a.org"}).headers[
        "Access-Control-Allow-Origin"
    ] in ("*", "https://a.org")
    assert "Access-Control-Allow-Origin" not in client_of().get("/models", headers={"Origin": "https://a.org"}).headers


@pytest.mark.parametrize("path", ["/generate?length=4", "/generate?length=0", "/nowhere", "/models", "/livez", "/openapi.yaml"])
def test_every_answer_tells_browsers_what_they_may_not_do(client, path):
    headers = client.get(path).headers
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Content-Security-Policy"] == "default-src 'none'; frame-ancestors 'none'"
    assert headers["Referrer-Policy"] == "no-referrer"


def test_a_fault_tells_no_path_and_no_line_of_the_program(client, engine):
    engine.failure = RuntimeError("/srv/secret/model.onnx, line 7")
    response = client.get("/generate")
    assert response.status_code == 500
    assert not any(word in response.text for word in ("secret", "Traceback", ".py", "RuntimeError"))


def test_metrics_are_on_the_admin_port_alone_where_there_is_one(engine):
    client = create_app(replace(ServiceConfig(), admin_port=9090), engine).test_client()
    assert client.get("/metrics").status_code == 404
    assert client.get("/livez").status_code == 200
