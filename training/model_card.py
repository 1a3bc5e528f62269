"""The model card: what a model was trained on, how good it is, under which licence, and what it cannot do.

Written from the run's own records; no figure in it is typed by hand.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from service.music.representation import FIELDS


def write_model_card(path: Path, metadata: Mapping[str, Any], content: Mapping[str, Any]) -> str:
    """Return the text of the card.

    Parameters
    ----------
    path : Path
        The ONNX file, as written.
    metadata : mapping
        Of the ONNX file.
    content : mapping
        The checkpoint it was made from.

    Returns
    -------
    str
        Markdown.
    """
    network, training, fit = metadata["network"], metadata["training"], content["fit"]
    best = min(content["history"], key=lambda row: row["valid"])
    sections = [
        f"# {path.stem}",
        f"A piano model for Nocturne: an LSTM of {network['layers']} layers of {network['hidden']} with a sequential head, "
        f"{network['parameters']:,} parameters. `{path.name}`, {path.stat().st_size:,} bytes, "
        f"SHA-256 `{hashlib.sha256(path.read_bytes()).hexdigest()}`.",
        "Written by `python -m training export` from the records of the training; do not edit.",
        "## Licence",
        f"The weights are published under {metadata['licence']}. {metadata['attribution']}",
        "## How good it is",
        *_evaluation(metadata["evaluation"], best),
        f"The exported graph differs from PyTorch by at most {metadata['parity']['max_error_nats']:.1e} nats, over "
        f"{metadata['parity']['values']:,} values that it composed itself.",
        "## What it was trained on",
        f"{training['pieces']:,} pieces, {training['notes']:,} notes, {training['hours']:.1f} hours of solo keyboard music:",
        *_packs(training["packs"]),
        "Each time a piece was played it was moved by up to "
        f"{fit['transpose']} semitones, {fit['tempo_steps']} tempo steps of 4 % and {fit['velocity_steps']} velocity steps of 4.",
        "## How it was trained",
        f"{best['step']:,} of at most {fit['steps']:,} updates of {fit['rows']} x {fit['window']} tokens "
        f"({training['epochs']:.1f} times round the pieces, {best['notes'] / 1e6:.1f} million notes, "
        f"{best['seconds'] / 3600:.2f} hours); "
        f"AdamW at {fit['learning_rate']}, weights averaged with decay {fit['ema']}, the best by validation kept. "
        f"Commit `{metadata['commit']}`, PyTorch {content['trained_with']['torch']}, training file `{content['data']}`.",
        *_origins(content["origins"]),
        "## What it knows beside the notes",
        "; ".join(f"{name}: {len(values) - 1} values" for name, values in metadata["conditions"].items())
        + ". Each may be left open. Times lie on a grid of 24 steps a quarter note; the longest note is 16 quarter notes.",
        "## Limits",
        "It has no memory but the state of an LSTM: it goes on plausibly from bar to bar, but does not come back to a theme. "
        "It knows European keyboard music of the 17th to the early 20th century, and nothing else. It may write a passage that "
        "a piece of its training data contains; nothing checks that. Velocities of part of the scores are synthetic.",
        "## Sources",
        *_sources(training["sources"]),
    ]
    return "\n\n".join(sections) + "\n"


def _evaluation(evaluation: Mapping[str, Any] | None, best: Mapping[str, Any]) -> list[str]:
    if evaluation is None:
        return [f"{best['valid']:.3f} nats per note on the validation split of its training file, no baselines computed."]
    header = ["", "nats per note", *FIELDS]
    rows = [["**this model**", evaluation["nats_per_note"], *(evaluation["fields"][name] for name in FIELDS)]]
    for name, total in evaluation["baselines"].items():
        rows.append([name, total, *(evaluation["baseline_fields"][name][field] for field in FIELDS)])
    packs = ", ".join(f"{pack or 'all'} {nats:.3f}" for pack, nats in evaluation["packs"].items())
    return [
        f"Nats per note on the validation split, {evaluation['pieces']} whole pieces, {evaluation['notes']:,} notes, lower is "
        "better; the model is told the metre but neither composer nor rendition. order3 and order5 are interpolated Kneser-Ney "
        f"models of the same training pieces. `{evaluation['command']}`",
        _table([header, *[[row[0], *(f"{value:.3f}" for value in row[1:])] for row in rows]]),
        f"By pack: {packs}.",
    ]


def _origins(origins: list[dict[str, Any]]) -> list[str]:
    return [
        f"It began with the weights of another run: {o['step']:,} updates, {o['epochs']:.1f} times round the pieces of the "
        f"training file `{o['data']}`, {o['notes'] / 1e6:.1f} million notes, {o['seconds'] / 3600:.2f} hours, "
        f"{o['valid']:.3f} nats per note, commit `{o['commit']}`."
        for o in reversed(origins)
    ]


def _packs(packs: Mapping[str, Mapping[str, Any]]) -> list[str]:
    rows = [[name or "(no pack)", str(figures["pieces"]), f"{figures['hours']:.1f}"] for name, figures in packs.items()]
    return [_table([["pack", "pieces", "hours"], *rows])]


def _sources(sources: list[list[Any]]) -> list[str]:
    if not sources:
        return ["The training file names none."]
    rows = [[attribution, licence, str(count)] for attribution, licence, count in sources]
    return [_table([["attribution", "licence", "pieces"], *rows])]


def _table(rows: list[list[str]]) -> str:
    """Return a Markdown table; the first row is its head."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])
