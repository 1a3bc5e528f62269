"""Whether what a model composes looks like music: simple statistics of composed pieces beside those of validation pieces.

    python -m bench.music exported/nocturne.onnx data/piano.npz [--pieces 40] [--length 200] [--temperature 1] [--min-p 0.1]

Composed pieces begin from nothing and may not end before their length; of a validation piece as many notes are taken, from
its 100th note on. Figures are means over pieces. The last line is JSON.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from service.engine.model import OnnxModel
from service.engine.sampling import SamplingParams, Sequence
from service.engine.scheduler import Scheduler
from service.music.piece import RESOLUTION, Records
from service.music.representation import TIME_SIGNATURES, decode_tokens
from training.data import load_dataset

MAJOR_SCALE = np.isin(np.arange(12), (0, 2, 4, 5, 7, 9, 11))
SKIPPED = 100  # notes of a validation piece


def statistics(notes: Records) -> dict[str, float]:
    """Return the figures of one piece."""
    classes = np.bincount(notes["pitch"] % 12, minlength=12) / len(notes)
    onsets = np.unique(notes["time"])
    right = notes["pitch"][notes["hand"] == 1]
    steps = list(zip(np.diff(notes["time"]).tolist(), np.diff(notes["pitch"]).tolist(), strict=True))
    figures = [tuple(steps[i : i + 3]) for i in range(len(steps) - 2)]
    runs = np.diff(np.flatnonzero(np.concatenate([[True], np.diff(notes["pitch"]) != 0, [True]])))
    return {
        "in_scale": max(float(classes[np.roll(MAJOR_SCALE, key)].sum()) for key in range(12)),
        "off_beat": float((onsets % RESOLUTION != 0).mean()),
        "off_16th": float((onsets % (RESOLUTION // 4) != 0).mean()),
        "notes_per_onset": len(notes) / len(onsets),
        "notes_per_quarter": len(notes) / max(1.0, float(np.ptp(notes["time"])) / RESOLUTION),
        "left_hand": float((notes["hand"] == 2).mean()),
        "right_hand_step": float(np.median(np.abs(np.diff(right)))) if len(right) > 1 else 0.0,
        "repeated_figures": 1 - len(set(figures)) / len(figures),
        "longest_repeated_note": float(runs.max()),
    }


def compose(model: OnnxModel, rendition: str, pieces: int, length: int, params: SamplingParams) -> list[Records]:
    """Return the notes of composed pieces."""
    conditions = {"metre": TIME_SIGNATURES.index("4/4")}
    conditions["rendition"] = model.info.metadata["conditions"]["rendition"].index(rendition)
    scheduler = Scheduler(model, pieces, 16, pieces)
    for seed in range(pieces):
        scheduler.add(seed, Sequence(seed, length, params=params, conditions=conditions), float("inf"))
    results = {}
    while scheduler.running or scheduler.waiting:
        results |= {outcome.id: decode_tokens(outcome.result.tokens).notes for outcome in scheduler.step(0.0)}
    return [results[seed] for seed in range(pieces)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--pieces", type=int, default=40)
    parser.add_argument("--length", type=int, default=200)
    parser.add_argument("--temperature", type=float, default=SamplingParams.temperature)
    parser.add_argument("--min-p", type=float, default=SamplingParams.min_p)
    options = parser.parse_args()
    params = SamplingParams(options.temperature, options.min_p, allow_end=False)
    model = OnnxModel(options.model, "cpu")
    valid = load_dataset(options.data).select("valid")
    groups: dict[str, list[Records]] = {}
    for rendition in ("score", "performed"):
        pieces = [
            decode_tokens(p.tokens).notes for p, i in zip(valid.pieces, valid.infos, strict=True) if i.rendition == rendition
        ]
        end = SKIPPED + options.length
        groups[f"valid, {rendition}"] = [notes[SKIPPED:end] for notes in pieces if len(notes) >= end]
        groups[f"composed, {rendition}"] = compose(model, rendition, options.pieces, options.length, params)
    table = {name: [statistics(notes) for notes in pieces] for name, pieces in groups.items()}
    means = {name: {key: float(np.mean([row[key] for row in rows])) for key in rows[0]} for name, rows in table.items()}
    print(f"{'':<24}" + "".join(f"{name:>22}" for name in means))
    for key in next(iter(means.values())):
        print(f"{key:<24}" + "".join(f"{figures[key]:>22.3f}" for figures in means.values()))
    print(json.dumps(means))


if __name__ == "__main__":
    main()
