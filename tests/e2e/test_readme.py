"""What the README tells a newcomer to type works, and what it tells an operator to set exists."""

import re
import shlex
from dataclasses import fields
from pathlib import Path

import mido
import pytest

from service.config import ServiceConfig
from tests.e2e.conftest import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
EXAMPLES = ROOT / "exported" / "examples"


def blocks(text: str) -> list[str]:
    return re.findall(r"```sh\n(.*?)```", text, re.DOTALL)


def calls(text: str) -> list[str]:
    lines = [line for block in blocks(text) for line in block.replace("\\\n", " ").splitlines()]
    return [line for line in lines if line.startswith("curl") and "127.0.0.1:8000" in line]


BLOCKS, CALLS = blocks(README), calls(README)
EXAMPLE_CALLS = calls((EXAMPLES / "README.md").read_text(encoding="utf-8"))


def test_there_are_calls_to_try() -> None:
    assert len(CALLS) >= 5


def test_every_example_stands_beside_its_call() -> None:
    made = [ROOT / shlex.split(call)[-1] for call in EXAMPLE_CALLS]
    assert sorted(made) == sorted(EXAMPLES.glob("*.mid"))
    assert len(made) == 12
    for path in made:
        assert sum(message.type == "note_on" for message in mido.MidiFile(path)) > 20


@pytest.mark.parametrize("command", CALLS + EXAMPLE_CALLS)
def test_every_call_composes(command: str, service, tmp_path: Path) -> None:
    method, url, headers, body = "GET", "", {}, None
    words = iter(shlex.split(command)[1:])
    for word in words:
        if word == "-X":
            method = next(words)
        elif word == "-H":
            name, _, value = next(words).partition(": ")
            headers[name] = value
        elif word == "-d":
            body = next(words)
        elif word == "--data-binary":  # a file that the call before it has made
            assert next(words) == "@melody.mid"
            body = service.compose(seed=42, length=64).content
        elif word == "-o":
            next(words)
        else:
            url = word
    response = service.http.request(method, url.removeprefix("http://127.0.0.1:8000"), headers=headers, content=body)
    assert response.status_code == 200, response.text
    if response.headers["Content-Type"] == "audio/midi":
        path = tmp_path / "melody.mid"
        path.write_bytes(response.content)
        assert any(message.type == "note_on" for message in mido.MidiFile(path))
    else:
        assert response.json()["notes"]


def test_the_first_call_gives_exactly_64_notes(service) -> None:
    assert CALLS[0] == next(call for call in CALLS if '{"seed": 42, "length": 64}' in call)
    response = service.compose(seed=42, length=64)
    assert response.headers["Nocturne-Notes"] == "64"
    assert response.headers["Nocturne-Ended"] == "true"


def test_every_setting_stands_in_the_readme() -> None:
    variables = {field.metadata["variable"] for field in fields(ServiceConfig)}
    assert {"HOST", "PORT", "ADMIN_PORT", "NOCTURNE_CORES"} < variables
    assert not [name for name in sorted(variables) if f"| `{name}` |" not in README]


def test_every_make_target_of_the_readme_exists() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"\bmake ([a-z]+)", "\n".join(BLOCKS))):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_every_link_inside_the_project_leads_somewhere() -> None:
    for name in re.findall(r"\]\(([^):#]+)\)", README):
        assert (ROOT / name).exists(), name


@pytest.mark.parametrize("name", ["README.md", "ARCHITECTURE.md", "training/LOG.md", "exported/MODEL_CARD.md"])
def test_no_figure_was_left_to_be_filled_in(name: str) -> None:
    assert not re.findall(
        r"\b(?:[A-Z]+_(?:TABLE|MACHINE|RESULT)|BASELINES|SHIPPED|TODO)\b", (ROOT / name).read_text(encoding="utf-8")
    )


def test_every_metric_stands_in_the_readme(service) -> None:
    service.compose(seed=1, length=4)
    text = service.http.get("/metrics").text
    names = {line.split()[2] for line in text.splitlines() if line.startswith("# HELP")}
    assert len(names) >= 12
    assert not [name for name in sorted(names) if f"`{name}`" not in README and not name.endswith("_created")]
