"""What may be kept of an answer, and what a client would like: Cache-Control, ETag, Prefer."""

import pytest

from service.config import ServiceConfig
from service.engine.interface import ModelInfo
from service.web.app import create_app
from service.web.preferences import wait_preference
from service.web.quotas import hash_key
from tests.contract.conftest import METADATA, FakeEngine


@pytest.mark.parametrize(
    ("query", "kept"),
    [
        ("seed=1&model=fake", "public, max-age=31536000, immutable"),
        ("seed=1", "public, max-age=3600"),
        ("random_seed=1&model=fake", "public, max-age=31536000, immutable"),
        ("model=fake", "no-store"),
        ("", "no-store"),
        ("seed=1&length=0", "no-store"),
    ],
)
def test_an_answer_may_be_kept_as_long_as_it_stays_the_same(client, query, kept):
    response = client.get(f"/generate?{query}")
    assert response.headers["Cache-Control"] == kept
    assert ("ETag" in response.headers) == (kept != "no-store")
    posted = client.post("/generate", json={"seed": 1})
    assert posted.headers["Cache-Control"] == "no-store"
    assert "ETag" not in posted.headers


def test_with_keys_an_answer_is_for_its_client(tmp_path):
    path = tmp_path / "keys.toml"
    path.write_text(f'[[keys]]\nname = "school"\nsha256 = "{hash_key("abc")}"\n')
    client = create_app(ServiceConfig(api_keys_file=path), FakeEngine()).test_client()
    kept = client.get("/generate?seed=1&model=fake", headers={"Authorization": "Bearer abc"}).headers["Cache-Control"]
    assert kept == "private, max-age=31536000, immutable"


def test_what_a_client_has_already_is_not_composed_again(client, engine):
    first = client.get("/generate?seed=1&length=9")
    tag = first.headers["ETag"]
    assert len(engine.submitted) == 1
    for given in (tag, f'"other", {tag}', f"W/{tag}", "*"):
        again = client.get("/generate?length=9&seed=1", headers={"If-None-Match": given})
        assert (again.status_code, again.data, again.headers["ETag"]) == (304, b"", tag)
        assert again.headers["Cache-Control"] == first.headers["Cache-Control"]
        assert again.headers["Vary"] == first.headers["Vary"]
    assert client.head("/generate?length=9&seed=1", headers={"If-None-Match": tag}).status_code == 304
    assert len(engine.submitted) == 1
    assert client.get("/generate?seed=1&length=9", headers={"If-None-Match": '"other"'}).status_code == 200


def test_a_tag_is_that_of_one_answer_only(client, engine):
    def tag(query: str, accept: str = "audio/midi") -> str:
        return client.get(f"/generate?{query}", headers={"Accept": accept}).headers["ETag"]

    tags = [tag("seed=1"), tag("seed=2"), tag("seed=1&length=9"), tag("seed=1&end=false"), tag("seed=1", "application/json")]
    assert len(set(tags)) == len(tags)
    assert tag("seed=1") == tags[0]
    engine.models = [ModelInfo("fake", METADATA, "cpu", "1" * 64)]
    other = create_app(ServiceConfig(), engine).test_client()
    assert other.get("/generate?seed=1").headers["ETag"] != tags[0], "another file under the same name"


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("wait=5", 5),
        ("respond-async, wait=10", 10),
        ('wait="7"; foo', None),
        ("wait=60", 60),
        ("wait=61", None),
        ("wait=0", None),
        ("wait=-1", None),
        ("wait=1.5", None),
        ("wait=x", None),
        ("wait", None),
        ("wait=" + "9" * 5000, None),
        ("wait=٣", None),
        ("", None),
        (None, None),
    ],
)
def test_a_wait_that_is_shorter_than_the_limit_is_taken(header, seconds):
    assert wait_preference(header, 60) == seconds


def test_a_client_that_waits_less_long_is_answered_sooner():
    engine = FakeEngine()
    client = create_app(ServiceConfig(deadline_s=30), engine).test_client()
    answered = client.get("/generate?length=4", headers={"Prefer": "wait=5"})
    assert (answered.status_code, answered.headers["Preference-Applied"]) == (200, "wait=5")
    assert "Preference-Applied" not in client.get("/generate?length=4", headers={"Prefer": "wait=99"}).headers
    engine.stuck = True
    late = client.get("/generate?length=4", headers={"Prefer": "wait=1"})
    assert late.status_code == 504
    assert late.json["detail"] == "the piece was not complete within 1 seconds; ask for fewer notes or try again later"
    assert engine.gave_up.is_set()
    refused = client.get("/metrics").text
    assert 'nocturne_rejections_total{cause="wait"} 1.0' in refused
    assert 'nocturne_rejections_total{cause="deadline"} 0.0' in refused, "the service kept its own"
