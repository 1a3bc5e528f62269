"""The model card: what a model was trained on, how good it is, under which licence, and what it cannot do.

Written from the run's own records; no figure in it is typed by hand.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from service.engine.files import file_hash
from training.parity import Int8Parity
from training.scores_section import scores_section

# Between them stands what `report` found; `export` leaves room for it.
REPORT_BEGINS, REPORT_ENDS = "<!-- report -->", "<!-- end of the report -->"
NO_REPORT = "Not made yet of this file: `python -m training report`."


def write_model_card(
    path: Path,
    int8_path: Path | None,
    metadata: Mapping[str, Any],
    int8: Int8Parity,
    content: Mapping[str, Any],
    evaluation: Mapping[str, Any] | None,
) -> str:
    """Return the text of the card.

    Parameters
    ----------
    path : Path
        The float32 ONNX file, as written.
    int8_path : Path, optional
        The int8 one, if it was.
    metadata : mapping
        Of the float32 file.
    int8 : Int8Parity
        How good int8 is, written or not.
    content : mapping
        The checkpoint it was made from.
    evaluation : mapping, optional
        From `training.evaluate.evaluate`.

    Returns
    -------
    str
        Markdown.
    """
    network, training, fit = metadata["network"], metadata["training"], content["fit"]
    best = min(content["history"], key=lambda row: row["valid"])
    sections = [
        f"# {path.stem}",
        f"A piano model for Nocturne: an LSTM of {network['layers']} layers of {network['hidden']} with a memory of the last "
        f"{network['memory']} tokens and a sequential head, {network['parameters']:,} parameters.",
        _table([["file", "numbers", "bytes", "SHA-256"], *(_file(p) for p in (path, int8_path) if p)]),
        "Written by `python -m training export` from the records of the training; do not edit.",
        "## Licence",
        f"The weights are published under {metadata['licence']}. {metadata['attribution']}",
        "## How good it is",
        *_evaluation(evaluation, best),
        f"The exported graph differs from PyTorch by at most {metadata['parity']['max_error_nats']:.1e} nats, over "
        f"{metadata['parity']['values']:,} values that it composed itself. Of `{metadata['parity']['corpus_piece']}`, a piece of "
        f"music21's corpus, PyTorch needs {metadata['parity']['corpus_nats_per_note']:.4f} nats per note.",
        f"With its large products in int8 the model needs {int8.nats_per_note:.4f} nats per note where PyTorch needs "
        f"{int8.pytorch_nats_per_note:.4f} ({100 * int8.difference:+.2f} %; {int8.pieces}). "
        + (
            "It runs on the CPU, and composes other melodies from the same random seed than float32 does."
            if int8_path
            else "That is too much, so there is no int8 file."
        ),
        "## What its music is like",
        REPORT_BEGINS,
        NO_REPORT,
        REPORT_ENDS,
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
        f"It can point back {network['memory']} tokens, some dozen bars, and no further: a theme that comes back later, it "
        "has forgotten. It knows European keyboard music of the 17th to the early 20th century, and nothing else. It may write "
        "what a piece of its training data contains; nothing checks that. Velocities of part of the scores are synthetic.",
        "## Sources",
        *_sources(training["sources"]),
    ]
    return "\n\n".join(sections) + "\n"


def _file(path: Path) -> list[str]:
    numbers = "int8" if path.stem.endswith(".int8") else "float32"
    return [f"`{path.name}`", numbers, f"{path.stat().st_size:,}", f"`{file_hash(path)}`"]


def _evaluation(evaluation: Mapping[str, Any] | None, best: Mapping[str, Any]) -> list[str]:
    if evaluation is None:
        return [f"{best['valid']:.3f} nats per note on the validation split of its training file, no baselines computed."]
    about = "The model is told the metre and nothing else of a piece, neither composer nor key nor tempo nor what is left of it."
    return [
        f"On the {evaluation['split']} split of the training file. {about} `{evaluation['command']}`",
        scores_section(evaluation),
    ]


def insert_report(card: str, section: str) -> str:
    """Return a card with what `report` found in its place."""
    head, _, rest = card.partition(REPORT_BEGINS)
    _, _, tail = rest.partition(REPORT_ENDS)
    return f"{head}{REPORT_BEGINS}\n\n{section.strip()}\n\n{REPORT_ENDS}{tail}"


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
