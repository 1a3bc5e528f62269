"""openapi.yaml against the code: valid in itself, routes = operations, and every limit and default is the one that holds."""

import base64
import hashlib

import jsonschema_rs
import pytest
import yaml
from openapi_spec_validator import validate

from service.engine.sampling import MAX_SEED
from service.music.keys import KEY_NAMES
from service.music.piece import HIGHEST_PITCH, LOWEST_PITCH
from service.music.representation import TIME_SIGNATURES
from service.web import quotas, upload
from service.web.contract import DOCUMENT, Contract, ContractMismatch
from service.web.melody import MAX_HELD
from service.web.requests import MAX_NOTES
from service.web.violations import MAX_VIOLATIONS, resolve

CONTRACT = Contract.load()
SCHEMAS = CONTRACT.document["components"]["schemas"]
BODY = SCHEMAS["GenerateRequest"]["properties"]
QUERY = {p["name"]: p["schema"] for p in CONTRACT.document["paths"]["/generate"]["get"]["parameters"] if p.get("in") == "query"}
# What the readers of schemas in service.web know; anything else would not be explained, or not be filled in.
KEYWORDS = {
    "$ref", "anyOf", "type", "properties", "additionalProperties", "required", "items", "minItems", "maxItems", "enum", "minimum",
    "maximum", "minLength", "maxLength", "default",
}  # fmt: skip
ANNOTATIONS = {"title", "description", "examples", "x-limits", "x-default-unless"}


def schemas_within(schema):
    yield schema
    inner = [*schema.get("anyOf", ()), *schema.get("properties", {}).values(), *([schema["items"]] if "items" in schema else [])]
    inner += [resolve({"$ref": schema["$ref"]}, CONTRACT.document)] if "$ref" in schema else []
    for one in inner:
        yield from schemas_within(one)


def test_the_document_is_valid_openapi():
    validate(yaml.safe_load(DOCUMENT.read_text()))


def test_routes_are_the_operations(app):
    routes = {(method, rule.rule) for rule in app.url_map.iter_rules() for method in rule.methods - {"HEAD", "OPTIONS"}}
    assert routes == {(operation.method, operation.path) for operation in CONTRACT.operations.values()}


def test_an_operation_without_a_handler_or_the_reverse_fails_the_start():
    handlers = dict.fromkeys(CONTRACT.operations, print)
    CONTRACT.check_handlers(handlers)
    with pytest.raises(ContractMismatch, match="`more` has no operation"):
        CONTRACT.check_handlers({**handlers, "more": print})
    del handlers["live"]
    with pytest.raises(ContractMismatch, match="`live` has no handler"):
        CONTRACT.check_handlers(handlers)


def test_every_field_is_described_with_an_example_that_is_valid():
    for name, schema in [*BODY.items(), *QUERY.items(), *SCHEMAS["Note"]["properties"].items()]:
        resolved = resolve(schema, CONTRACT.document)
        assert resolved["description"], name
        for example in resolved["examples"]:
            jsonschema_rs.validate({**resolved, "components": CONTRACT.document["components"]}, example)


def test_request_examples_are_answered(client):
    examples = CONTRACT.document["paths"]["/generate"]["post"]["requestBody"]["content"]["application/json"]["examples"]
    for example in examples.values():
        assert client.post("/generate", json=example["value"]).status_code == 200


def test_problem_examples_follow_their_schema():
    for response in CONTRACT.document["components"]["responses"].values():
        content = response["content"]["application/problem+json"]
        jsonschema_rs.validate({**content["schema"], "components": CONTRACT.document["components"]}, content["example"])


def test_query_and_body_have_the_same_fields():
    assert QUERY.keys() == BODY.keys()
    for name in QUERY.keys() - {"seed"}:
        assert QUERY[name]["$ref"] == BODY[name]["$ref"]


def test_limits_are_those_of_the_code():
    assert (SCHEMAS["RandomSeed"]["minimum"], SCHEMAS["RandomSeed"]["maximum"]) == (0, MAX_SEED)
    assert (SCHEMAS["PitchNumber"]["minimum"], SCHEMAS["PitchNumber"]["maximum"]) == (LOWEST_PITCH, HIGHEST_PITCH)
    assert SCHEMAS["Problem"]["properties"]["errors"]["maxItems"] == MAX_VIOLATIONS
    assert MAX_HELD == 8, "Melody says eight"
    assert SCHEMAS["Length"]["maximum"] == MAX_NOTES
    assert SCHEMAS["Melody"]["maxItems"] == upload.MAX_NOTES
    assert SCHEMAS["Note"]["properties"]["start"]["maximum"] == upload.MAX_QUARTERS
    assert (SCHEMAS["Tempo"]["minimum"], SCHEMAS["Tempo"]["maximum"]) == upload.TEMPO_RANGE
    told = CONTRACT.document["paths"]["/generate"]["post"]["requestBody"]["content"]["audio/midi"]["schema"]["description"]
    assert f"at most {upload.MAX_FILE_BYTES:,} bytes, with 1 to {upload.MAX_NOTES:,} notes" in told
    assert f"at most {upload.MAX_HIGH_BYTES:,} in a row" in " ".join(told.split())
    assert quotas.NOTES_PER_QUARTER == 4, "TooMany says four"
    assert SCHEMAS["TimeSignature"]["enum"] == list(TIME_SIGNATURES[1:])
    assert max(len(name) for name in KEY_NAMES) <= SCHEMAS["Key"]["maxLength"]


def test_request_schemas_use_only_what_their_readers_know():
    for schema in schemas_within(SCHEMAS["GenerateRequest"]):
        assert schema.keys() <= KEYWORDS | ANNOTATIONS
        for pair in (("minimum", "maximum"), ("minItems", "maxItems"), ("minLength", "maxLength")):
            assert len(schema.keys() & set(pair)) != 1, "a limit without the other one has no sentence"
        assert "anyOf" not in schema or schema["title"]


@pytest.mark.parametrize(("name", "schema"), BODY.items())
def test_every_default_is_filled_in(name, schema):
    fields = CONTRACT.check("generate", {})
    default = resolve(schema, CONTRACT.document).get("default")
    assert fields.get(name) == default
    assert CONTRACT.check("generateByQuery", {}) == fields


def test_a_default_does_not_hold_beside_the_field_that_takes_its_place():
    assert resolve(BODY["length"], CONTRACT.document)["x-default-unless"] == "bars"
    for operation in ("generate", "generateByQuery"):
        assert "length" not in CONTRACT.check(operation, {"bars": 4})
        assert CONTRACT.check(operation, {"bars": 4, "length": 5})["length"] == 5


@pytest.mark.parametrize(
    ("field", "low", "high", "step"),
    [
        ("length", 1, 4096, 1),
        ("temperature", 0, 2, 0.001),
        ("min_p", 0, 1, 0.001),
        ("random_seed", 0, MAX_SEED, 1),
        ("bars", 1, 128, 1),
        ("tempo", 20, 300, 0.5),
    ],
)
def test_every_limit_holds_in_body_and_query(client, field, low, high, step):
    for value, status in ((low, 200), (high, 200), (low - step, 422), (high + step, 422)):
        assert client.post("/generate", json={field: value}).status_code == status
        assert client.get(f"/generate?{field}={value}").status_code == status
    body = client.post("/generate", json={field: high + step}).get_json()
    assert body["errors"] == [{"pointer": f"/{field}", "detail": f"`{field}` must be in [{low}, {high}]; got {high + step}"}]


@pytest.mark.parametrize(
    ("item", "status"),
    [
        (21, 200), (108, 200), (20, 422), (109, 422), ([60] * 1, 200), (list(range(60, 70)), 200), (list(range(60, 71)), 422),
        ([], 422), ("A0", 200), ("", 422), ("x" * 12, 422), ("x" * 13, 422),
        ({"pitch": 60, "start": 0}, 200), ({"pitch": 60, "start": 4096}, 200), ({"pitch": 60, "start": -0.01}, 422),
        ({"pitch": 60, "start": 4096.1}, 422), ({"pitch": 60, "duration": 1 / 24}, 200), ({"pitch": 60, "duration": 16}, 200),
        ({"pitch": 60, "duration": 0.041}, 422), ({"pitch": 60, "duration": 16.1}, 422), ({"pitch": 60, "velocity": 1}, 200),
        ({"pitch": 60, "velocity": 127}, 200), ({"pitch": 60, "velocity": 0}, 422), ({"pitch": 60, "velocity": 128}, 422),
        ({"pitch": 60, "hand": "both"}, 422), ({}, 422),
    ],
)  # fmt: skip
def test_every_limit_of_a_melody_holds(client, item, status):
    assert client.post("/generate", json={"seed": ["D4", item]}).status_code == status


def test_a_melody_holds_one_to_2048_items(client):
    pitches = [60 + i % 12 for i in range(2049)]
    assert client.post("/generate", json={"seed": pitches[:2048]}).status_code == 200
    for seed in (pitches, []):
        assert client.post("/generate", json={"seed": seed}).get_json()["errors"][0]["pointer"] == "/seed"


@pytest.mark.parametrize(
    ("path", "schema"), [("/models", None), ("/livez", "Status"), ("/readyz", "Status"), ("/generate?seed=1", "Composition")]
)
def test_json_answers_follow_their_schemas(client, path, schema):
    response = client.get(path, headers={"Accept": "application/json"})
    assert response.status_code == 200
    assert response.mimetype == "application/json"
    if schema:
        reference = {"$ref": f"#/components/schemas/{schema}"}
    else:
        reference = CONTRACT.document["paths"][path]["get"]["responses"]["200"]["content"]["application/json"]["schema"]
    jsonschema_rs.validate({**reference, "components": CONTRACT.document["components"]}, response.get_json())


def test_the_document_is_served_as_it_is(client):
    response = client.get("/openapi.yaml")
    assert response.data == DOCUMENT.read_bytes()
    assert response.mimetype == "application/yaml"


def test_the_page_loads_nothing_and_allows_only_its_own_script(client):
    response = client.get("/docs")
    page = response.get_data(as_text=True)
    assert "default-src 'none'; script-src 'sha256-" in response.headers["Content-Security-Policy"]
    for tag in ("script", "style"):
        content = page.partition(f"<{tag}>")[2].partition(f"</{tag}>")[0]
        assert base64.b64encode(hashlib.sha256(content.encode()).digest()).decode() in response.headers["Content-Security-Policy"]
    assert "unsafe" not in response.headers["Content-Security-Policy"]
    assert page.count("<script") == page.count("<script>") == 1
    assert " src=" not in page
    assert "http-equiv" not in page
    assert " style=" not in page
    assert " onclick=" not in page
    for operation in CONTRACT.operations.values():
        assert f"{operation.method} {operation.path}" in page
    for field in BODY:
        assert f'name="{field}"' in page
    for beside in ("file", "api-key"):  # no fields of the JSON, and so without a name that the form would send
        assert f'id="{beside}"' in page
        assert f'name="{beside}"' not in page
