"""How fast notes become tokens and tokens notes, and what a MIDI file loses on the way through them.

    python bench/representation.py                 the speed, over generated music, on one core
    python bench/representation.py DATA            also: MIDI -> tokens -> MIDI over every file of DATA/manifest.csv

Originals and results are both read with symusic, so that our own reader is one of the things measured. Prints a table for people;
the last line is JSON.
"""

import argparse
import csv
import io
import json
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mido
import numpy as np
import symusic

from service.music.midi import read_midi
from service.music.midi_writer import write_midi
from service.music.piece import NOTE, PEDAL, RESOLUTION, TEMPO, Hand, Piece, records, sort_notes
from service.music.representation import DURATIONS, MAX_SHIFT, decode_tokens, encode_piece
from training.prepare import fold_into_piano

TEMPO_BOUND = 0.02
BOUNDS = {  # design bounds; None: a figure without a bound
    "files": None,
    "notes": None,
    "notes_lost": 0,
    "notes_folded": None,
    "hands_changed": 0,
    "onsets_on_grid_share": None,
    "onsets_exact_share": None,
    "onset_error_on_grid_beats": 0.0,
    "onset_error_beats": 1 / 48,
    "duration_error_on_grid_ticks": 0.0,
    "durations_on_grid_share": None,
    "velocity_error": 2,
    "tempo_error_on_grid_share": TEMPO_BOUND,
    "tempo_error_share": TEMPO_BOUND,
    "tempo_beyond_bound_notes": 0,
    "tempo_changed_by_moving_notes": None,
    "pedal_changes": None,
    "pedals_lost": 0,
    "pedal_error_ticks": 1.0,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="?", help="folder with MIDI files and a manifest.csv")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="only every N-th file")
    arguments = parser.parse_args()
    result: dict[str, Any] = {"speed": measure_speed()}
    print("notes per second on one core")
    for name, speed in result["speed"].items():
        print(f"  {name:12}{speed:12,.0f}")
    if arguments.data:
        result["round_trip"] = figures = measure_round_trip(arguments.data, arguments.every)
        print(f"\n{'MIDI -> tokens -> MIDI':32}{'measured':>14}{'bound':>12}")
        for name, bound in BOUNDS.items():
            verdict = "" if bound is None or figures[name] <= bound + 1e-9 else "  BEYOND"
            print(f"  {name:30}{figures[name]:14,.6g}{'' if bound is None else format(bound, '.4g'):>12}{verdict}")
    print(json.dumps(result))


def measure_speed(notes: int = 20_000, repeats: int = 7) -> dict[str, float]:
    """Return notes per second, the best of several runs, through each step."""
    piece = random_piece(notes)
    encoded = encode_piece(piece)
    data = write_midi(piece)
    steps: dict[str, Callable[[], object]] = {
        "encode": lambda: encode_piece(piece),
        "decode": lambda: decode_tokens(encoded.tokens, piece.time_signatures),
        "read MIDI": lambda: read_midi(data),
        "write MIDI": lambda: write_midi(piece),
    }
    return {name: notes / min(_seconds(step) for _ in range(repeats if "code" in name else 2)) for name, step in steps.items()}


def _seconds(step: Callable[[], object]) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def random_piece(count: int) -> Piece:
    """Return chords of both hands with a pedal change and a tempo change every other beat."""
    rng = np.random.default_rng(0)
    times = np.cumsum(rng.choice([0, 0, 3, 6, 8, 12, 24], count))
    columns = (times, rng.integers(21, 109, count), rng.integers(1, 96, count), rng.integers(1, 128, count))
    notes = sort_notes(records(NOTE, zip(*columns, rng.integers(1, 3, count), strict=True)))
    every = range(0, int(times[-1]), 2 * RESOLUTION)
    tempos = records(TEMPO, [(t, 60.0 + i % 7) for i, t in enumerate(every)])
    return Piece(notes, tempos, records(PEDAL, [(t, i % 2 == 0) for i, t in enumerate(every)]))


@dataclass
class Losses:
    """What was lost so far: sums in `counts`, worst values in `worst`."""

    counts: Counter[str] = field(default_factory=Counter)
    worst: dict[str, float] = field(default_factory=dict)

    def add(self, name: str, values: Any) -> None:
        """Keep the largest of the values."""
        self.worst[name] = max(self.worst.get(name, 0.0), float(np.max(values, initial=0)))


def measure_round_trip(folder: Path, every: int) -> dict[str, float]:
    """Return the figures of `BOUNDS`, summed or worst over the files of a manifest."""
    losses = Losses()
    with (folder / "manifest.csv").open(newline="", encoding="utf-8") as file:
        for row in list(csv.DictReader(file))[::every]:
            _compare_file(folder / row["path"], row, losses)
    counts = losses.counts
    return {
        "files": counts["files"],
        "notes": counts["notes"],
        "notes_lost": counts["lost"],
        "notes_folded": counts["folded"],
        "hands_changed": counts["hands"],
        "hands_compared": counts["hands_compared"],
        "onsets_on_grid_share": counts["on_grid"] / counts["notes"],
        "onsets_exact_share": counts["exact"] / counts["notes"],
        "durations_on_grid_share": counts["durations_on_grid"] / counts["notes"],
        "pedal_changes": counts["pedals"],
        "pedals_lost": counts["pedals_lost"],
        "tempo_beyond_bound_notes": counts["tempo_beyond"],
        "tempo_changed_by_moving_notes": counts["tempo_changed"] - counts["tempo_beyond"],
        **losses.worst,
    }


def _compare_file(path: Path, row: dict[str, str], losses: Losses) -> None:
    tracks = _hand_tracks(row["hand_tracks"])
    pickup = float(row["pickup_beats"]) if row["pickup_beats"] else None
    data = path.read_bytes()
    read, folded = fold_into_piano(read_midi(data, tracks or None, pickup))
    decoded = decode_tokens(encode_piece(read).tokens, read.time_signatures, read.pickup, read.key_signatures)
    before, after = symusic.Score.from_midi(data), symusic.Score.from_midi(write_midi(decoded))
    # symusic keeps the tracks that play, in the order of the file.
    hands = [tracks[number] for number in sorted(tracks)] if len(tracks) == len(before.tracks) else None
    old = _note_table(before, hands)
    new = _note_table(after, [_HANDS_BY_NAME[track.name] for track in after.tracks])
    counts = losses.counts
    counts["files"] += 1
    counts["notes"] += len(old)
    counts["folded"] += folded
    same = np.intersect1d(*(_keys(table) for table in (old, new)))
    lost = max(len(old), len(new)) - len(same)
    counts["lost"] += lost
    if lost:
        print(f"{row['path']}: {lost} notes lost or added")
        return
    # In both, the n-th note of a key at a tick; hands settle which is which where both strike it.
    known = hands is not None
    order = [_order(table, known) for table in (old, new)]
    old, new = old[order[0]], new[order[1]]
    if known:
        counts["hands_compared"] += len(old)
        counts["hands"] += int((old["hand"] != new["hand"]).sum())
    onset_error = np.abs(old["onset"] - new["onset"])
    on_grid = old["onset"] == np.round(old["onset"])
    counts["on_grid"] += int(on_grid.sum())
    counts["exact"] += int((onset_error == 0).sum())
    losses.add("onset_error_beats", onset_error / RESOLUTION)
    losses.add("onset_error_on_grid_beats", onset_error[on_grid] / RESOLUTION)
    regular = on_grid & (old["duration"] == np.round(old["duration"])) & (old["duration"] >= 1) & (old["duration"] <= MAX_SHIFT)
    counts["durations_on_grid"] += int(regular.sum())
    losses.add("duration_error_on_grid_ticks", np.abs(old["duration"] - new["duration"])[regular])
    fits = old["duration"] <= DURATIONS[-1]
    losses.add("duration_error_ticks", np.abs(old["duration"] - new["duration"])[fits])
    losses.add("velocity_error", np.abs(old["velocity"] - new["velocity"]))
    # An onset off the grid has two tempos to be compared with, if one changes between it and its place on the grid: the one where
    # it was and the one where it is now.
    tempos = _tempos_at(after, new["onset"])
    errors = [np.abs(tempos / _tempos_at(before, at) - 1) for at in (old["onset"], new["onset"])]
    tempo_error = np.minimum(*errors)
    losses.add("tempo_error_share", tempo_error)
    losses.add("tempo_error_on_grid_share", tempo_error[on_grid])
    counts["tempo_beyond"] += int((tempo_error > TEMPO_BOUND).sum())
    counts["tempo_changed"] += int((errors[0] > TEMPO_BOUND).sum())
    _compare_pedals(data, after, row["path"], losses)


_HANDS_BY_NAME = {"right hand": Hand.RIGHT, "left hand": Hand.LEFT, "piano": Hand.UNKNOWN}
_TABLE = np.dtype([("tick", "i8"), ("pitch", "i8"), ("hand", "i8"), ("duration", "f8"), ("velocity", "i8"), ("onset", "f8")])


def _hand_tracks(text: str) -> dict[int, Hand]:
    pairs = [item.split("=") for item in text.split(",") if item]
    return {int(track): Hand[hand.upper()] for hand, tracks in pairs for track in tracks.split("+")}


def _note_table(score: Any, hands: list[Hand] | None) -> np.ndarray:
    """Return the notes with times in our ticks, not rounded; `tick` is where the onset belongs on the grid."""
    tables = []
    scale = RESOLUTION / score.ticks_per_quarter
    for number, track in enumerate(score.tracks):
        arrays = track.notes.numpy()
        table = np.empty(len(arrays["time"]), _TABLE)
        table["onset"], table["duration"] = arrays["time"] * scale, arrays["duration"] * scale
        table["tick"] = np.floor(table["onset"] + 0.5)
        table["velocity"] = arrays["velocity"]
        pitch = arrays["pitch"].astype(np.int64)
        table["pitch"] = pitch + 12 * ((np.maximum(21 - pitch, 0) + 11) // 12 - (np.maximum(pitch - 108, 0) + 11) // 12)
        table["hand"] = Hand.UNKNOWN if hands is None else hands[number]
        tables.append(table)
    return np.concatenate(tables)


def _keys(table: np.ndarray) -> np.ndarray:
    """Return a distinct number for each note: tick, pitch, and how many are there already."""
    key = np.sort(table["tick"] * 128 + table["pitch"])
    first = np.searchsorted(key, key)
    return key * 64 + np.arange(len(key)) - first


def _order(table: np.ndarray, by_hand: bool) -> np.ndarray:
    hands = table["hand"] if by_hand else np.zeros(len(table))
    return np.lexsort((table["velocity"], np.round(table["duration"]), hands, table["pitch"], table["tick"]))


def _tempos_at(score: Any, onsets: np.ndarray) -> np.ndarray:
    tempos = score.tempos.numpy()
    times = tempos["time"] * (RESOLUTION / score.ticks_per_quarter)
    qpm = np.concatenate([[120.0], 60e6 / tempos["mspq"]])
    return qpm[np.searchsorted(times, onsets, side="right")]


def _compare_pedals(original: bytes, after: Any, path: str, losses: Losses) -> None:
    # mido, since symusic drops the tracks that only pedal.
    midi = mido.MidiFile(file=io.BytesIO(original), clip=True)
    old = []
    for track in midi.tracks:
        times = np.cumsum([message.time for message in track]) * (RESOLUTION / midi.ticks_per_beat)
        old += [(t, m.value >= 64) for t, m in zip(times, track, strict=True) if m.type == "control_change" and m.control == 64]
    scale = RESOLUTION / after.ticks_per_quarter
    new = [
        (c.time * scale, c.value >= 64) for c in after.tracks[0].controls if c.number == 64
    ]  # all tracks of ours have them all
    before, found = _changes(old), _changes(new)
    if len(found) == len(before) + 1 and not found[-1][1]:
        found.pop()  # the release that we add at the end
    losses.counts["pedals"] += len(before)
    if [down for _, down in before] != [down for _, down in found]:
        losses.counts["pedals_lost"] += abs(len(before) - len(found)) or len(before)
        print(f"{path}: {len(before)} pedal changes became {len(found)}")
        return
    losses.add("pedal_error_ticks", [abs(a - b) for (a, _), (b, _) in zip(before, found, strict=True)])


def _changes(events: list[tuple[float, bool]]) -> list[tuple[float, bool]]:
    changes: list[tuple[float, bool]] = []
    for at, down in sorted(events, key=lambda event: event[0]):
        if down != (bool(changes) and changes[-1][1]):
            changes.append((at, down))
    return changes


if __name__ == "__main__":
    main()
