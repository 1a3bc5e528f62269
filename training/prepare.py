"""`prepare`: a folder of music files, or a data set, to one training file.

A broken or empty file is reported with its reason and skipped. Splits come from a manifest, else by piece from a hash of the
name, so that adding files later moves no piece to another split.
"""

import csv
import hashlib
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace
from itertools import islice
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from service.errors import InvalidMusic
from service.music.keys import KEY_NAMES
from service.music.piece import HIGHEST_PITCH, LOWEST_PITCH, Hand, Piece, sort_notes
from service.music.representation import EncodedPiece, count_notes, encode_piece
from training.conditions import TEMPO_CLASSES, UNKNOWN, key_and_tempo, tempo_class
from training.data import SPLITS, Dataset, InvalidDataset, PieceInfo, condition_values
from training.import_music import file_sources, list_music_files, read_music_file
from training.source import Source

VALID_SHARE = 0.1  # of the pieces, where no manifest says it
PERFORMED_TEMPO_CHANGES = 0.1  # changes per onset from which a piece counts as performed; scores have far fewer


@dataclass
class Summary:
    """What `prepare` did."""

    files: int = 0
    notes: int = 0
    seconds: float = 0.0
    moved: int = 0  # notes outside the piano, moved into it by octaves
    skipped: dict[str, str] = field(default_factory=dict)  # name to reason
    splits: Counter[str] = field(default_factory=Counter)


def manifest_sources(folder: Path, manifest: Path) -> list[Source]:
    """Return the pieces that a manifest.csv lists.

    Needs the columns `path` (relative to `folder`) and `split`; uses `composer`, `pack`, `hand_tracks` (such as
    "right=1,left=2+3"), `pickup_beats`, `licence` and `attribution` where they stand.

    Raises
    ------
    InvalidDataset
        If a column is missing or a value is not what its column holds.
    """
    sources = []
    with manifest.open(newline="", encoding="utf-8") as file:
        for number, row in enumerate(csv.DictReader(file), start=2):
            if not row.get("path") or not row.get("split"):
                raise InvalidDataset(f"{manifest}, line {number}: `path` and `split` are needed")
            if row["split"] not in SPLITS:
                raise InvalidDataset(f"{manifest}, line {number}: `split` must be one of {', '.join(SPLITS)}; got {row['split']}")
            try:
                reader = _FileReader(folder / row["path"], _hand_tracks(row.get("hand_tracks")), _number(row.get("pickup_beats")))
            except (KeyError, ValueError) as error:
                raise InvalidDataset(f"{manifest}, line {number}: cannot read {error}") from error
            known = {name: row.get(name) or "" for name in ("pack", "licence", "attribution")}
            sources.append(Source(row["path"], reader, row["split"], row.get("composer") or UNKNOWN, **known))
    return sources


def folder_sources(folder: Path) -> list[Source]:
    """Return every music file under a folder, at any depth; an ABC file gives a source for each of its tunes."""
    return file_sources(folder, list_music_files(folder))


def prepare(sources: Iterable[Source], processes: int, progress: Callable[[Summary], None]) -> tuple[Dataset, Summary]:
    """Read and encode pieces in several processes.

    Parameters
    ----------
    sources : iterable of Source
    processes : int
        How many work at a time; 1 reads in this process.
    progress : callable
        Called with the summary so far after each piece.

    Returns
    -------
    dataset : Dataset
    summary : Summary

    Raises
    ------
    InvalidDataset
        If not a single piece could be read.
    """
    summary = Summary()
    pieces: list[EncodedPiece] = []
    infos: list[PieceInfo] = []
    for source, result in _read_all(sources, processes):
        if isinstance(result, str):
            summary.skipped[source.name] = result
        else:
            encoded, rendition, seconds, moved = result
            key, tempo = key_and_tempo(encoded.tokens)
            split = source.split or _split_of(source.name)
            pieces.append(encoded)
            infos.append(
                PieceInfo(
                    source.name,
                    split,
                    composer=source.composer,
                    rendition=rendition,
                    key=KEY_NAMES[key],
                    tempo=TEMPO_CLASSES[tempo_class(tempo)],
                    pack=source.pack,
                    seconds=seconds,
                    licence=source.licence,
                    attribution=source.attribution,
                )
            )
            summary.files += 1
            summary.notes += count_notes(encoded.tokens)
            summary.seconds += seconds
            summary.moved += moved
            summary.splits[split] += 1
        progress(summary)
    if not pieces:
        raise InvalidDataset(f"no piece could be read; {len(summary.skipped)} files were skipped")
    if len(infos) > 1 and set(summary.splits) == {"train"}:
        # So few pieces that the hash gave validation none: without one, training could not know when to stop.
        least = min(range(len(infos)), key=lambda i: _share(infos[i].name))
        infos[least] = replace(infos[least], split="valid")
        summary.splits = Counter(info.split for info in infos)
    return Dataset(tuple(pieces), tuple(infos), condition_values(infos)), summary


@dataclass(frozen=True)
class _FileReader:
    """Reads one file; a class and not a closure, so that it travels to other processes."""

    path: Path
    hand_tracks: dict[int, Hand] | None = None
    pickup_beats: float | None = None

    def __call__(self) -> Piece:
        return read_music_file(self.path, self.hand_tracks, self.pickup_beats)


_Encoded = tuple[EncodedPiece, str, float, int]


def _read_all(sources: Iterable[Source], processes: int) -> Iterator[tuple[Source, _Encoded | str]]:
    if processes == 1:
        for source in sources:
            yield source, _read(source)
        return
    remaining = iter(sources)
    while True:
        # A window of futures keeps the order without reading ahead forever.
        with _pool(processes) as pool:
            window = deque((s, pool.submit(_read, s)) for s in islice(remaining, 8 * processes))
            if not window:
                return
            try:
                while window:
                    result = window[0][1].result()
                    yield window.popleft()[0], result
                    window.extend((s, pool.submit(_read, s)) for s in islice(remaining, 1))
            except BrokenProcessPool:
                pass  # one of the window's files took its process with it; which one shows when each is read apart
        for source, _ in window:
            yield source, _read_apart(source)


def _read_apart(source: Source) -> _Encoded | str:
    """Read a file in a process of its own."""
    with _pool(1) as pool:
        try:
            return pool.submit(_read, source).result()
        except BrokenProcessPool:
            return "the process that read it died"


def _pool(processes: int) -> ProcessPoolExecutor:
    # spawn: a fork would copy this process's threads' locks
    return ProcessPoolExecutor(processes, mp_context=get_context("spawn"))


def _read(source: Source) -> _Encoded | str:
    """Return the encoded piece, or the reason why there is none."""
    try:
        piece, moved = fold_into_piano(source.read())
        encoded = encode_piece(piece)
    except (InvalidMusic, OSError) as error:
        return str(error)
    except Exception as error:  # other people's parsers on other people's files: one of them must not end the whole run
        return f"{type(error).__name__}: {error}"
    onsets = len(np.unique(piece.notes["time"]))
    rendition = "performed" if len(piece.tempos) > PERFORMED_TEMPO_CHANGES * onsets + 1 else "score"
    return encoded, rendition, piece.seconds(), moved


def fold_into_piano(piece: Piece) -> tuple[Piece, int]:
    """Move notes outside the piano into it by octaves; return the piece and how many were moved."""
    pitches = piece.notes["pitch"]
    below = np.maximum(LOWEST_PITCH - pitches + 11, 0) // 12
    above = np.maximum(pitches - HIGHEST_PITCH + 11, 0) // 12
    moved = int(((below > 0) | (above > 0)).sum())
    if not moved:
        return piece, 0
    notes = piece.notes.copy()
    notes["pitch"] += 12 * (below - above)
    return replace(piece, notes=sort_notes(notes)), moved


def _split_of(name: str) -> str:
    return "valid" if _share(name) < VALID_SHARE else "train"


def _share(name: str) -> float:
    """Return a number in [0, 1) that follows from a name."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4]) / 2**32


def _hand_tracks(text: str | None) -> dict[int, Hand] | None:
    if not text:
        return None
    pairs = (item.split("=") for item in text.split(","))
    return {int(track): Hand[hand.strip().upper()] for hand, tracks in pairs for track in tracks.split("+")}


def _number(text: str | None) -> float | None:
    return float(text) if text else None
