"""ABC tunes and Humdrum **kern scores to pieces, through music21.

Not through muspy, which calls music21 too but (0.5) rounds every duration to whole quarter notes and forgets the ties of chords.
Chord symbols and grace notes are left out, repeats are played. Imports music21 when used.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from service.errors import InvalidMusic
from service.music.piece import (
    DEFAULT_VELOCITY,
    NOTE,
    RESOLUTION,
    TEMPO,
    Hand,
    KeySignature,
    Piece,
    TimeSignature,
    records,
    sort_notes,
)

_TUNE = re.compile(r"(?m)^X:")


def split_tunes(text: str) -> list[str]:
    """Return the tunes of an ABC file, each with the fields that stand before the first.

    Parameters
    ----------
    text : str
        The file; a tune begins with a line X:number.
    """
    starts = [match.start() for match in _TUNE.finditer(text)]
    if not starts:
        return [text]
    header = text[: starts[0]]
    return [header + text[start:end] for start, end in zip(starts, [*starts[1:], len(text)], strict=True)]


def read_abc_text(path: Path) -> str:
    """Return an ABC file's text; older ones are in latin-1."""
    data = path.read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("latin1")


def read_score(text: str, format: str) -> Piece:
    """Read a tune or a score.

    Parameters
    ----------
    text : str
        One tune, or one score.
    format : str
        "abc" or "humdrum".

    Returns
    -------
    Piece
        Two staves are right and left hand; with one, or more than two, the hand is unknown.

    Raises
    ------
    InvalidMusic
        If music21 cannot read it.
    """
    from music21 import converter

    try:
        return _piece_from_music21(converter.parseData(text, format=format))
    except Exception as error:  # music21 raises its own, and whatever its parsers stumble over
        raise InvalidMusic(f"the {format} text cannot be read: {error or type(error).__name__}") from error


def _piece_from_music21(parsed: Any) -> Piece:
    from music21 import key, meter, tempo
    from music21.stream import Opus

    score = parsed.scores[0] if isinstance(parsed, Opus) else parsed
    parts = [_played(part.stripTies()) for part in score.parts or [score]]
    parts = [part for part in parts if next(_notes(part), None) is not None]
    hands = (Hand.RIGHT, Hand.LEFT) if len(parts) == 2 else (Hand.UNKNOWN,) * len(parts)
    notes = [(*note, hand) for part, hand in zip(parts, hands, strict=True) for note in _notes(part)]
    if not parts:
        return Piece(records(NOTE))
    first = parts[0].flatten()
    signatures = {_tick(s.offset): (s.numerator, s.denominator) for s in first.getElementsByClass(meter.TimeSignature)}
    metre = tuple(TimeSignature(time, *signature) for time, signature in sorted({0: (4, 4), **signatures}.items()))
    keys = {
        _tick(k.offset): (k.sharps, isinstance(k, key.Key) and k.mode == "minor")
        for k in first.getElementsByClass(key.KeySignature)
        if abs(k.sharps or 0) <= 7
    }
    marks = {_tick(m.offset): m.getQuarterBPM() for m in score.flatten().getElementsByClass(tempo.MetronomeMark)}
    title = score.metadata.title if score.metadata is not None else None
    return Piece(
        notes=sort_notes(records(NOTE, notes)),
        tempos=records(TEMPO, sorted((time, float(qpm)) for time, qpm in marks.items() if qpm)),
        time_signatures=metre,
        key_signatures=tuple(KeySignature(time, *k) for time, k in sorted(keys.items())),
        pickup=_pickup(parts[0], metre[0].bar_ticks),
        title=title or "",
    )


def _played(part: Any) -> Any:
    """Return a part with its repeats written out, where music21 understands them."""
    from music21.repeat import ExpanderException

    if not part.hasMeasures():
        return part
    try:
        return part.expandRepeats()
    except ExpanderException:
        return part


def _notes(part: Any) -> Iterator[tuple[int, int, int, int]]:
    """Yield (time, pitch, duration, velocity) of every note, those of chords too."""
    from music21.harmony import Harmony

    for element in part.flatten().notes:
        if isinstance(element, Harmony) or element.duration.isGrace or not element.pitches:
            continue
        start = _tick(element.offset)
        length = max(1, _tick(element.offset + element.quarterLength) - start)
        velocity = min(max(round(element.volume.velocity or DEFAULT_VELOCITY), 1), 127)
        for pitch in element.pitches:
            yield start, round(pitch.ps), length, velocity


def _pickup(part: Any, bar_ticks: int) -> int:
    measures = list(part.getElementsByClass("Measure"))
    first = _tick(measures[0].duration.quarterLength) if len(measures) > 1 else 0
    return first if first < bar_ticks else 0


def _tick(quarters: Any) -> int:
    """Return a time in quarter notes (float or Fraction) on our grid."""
    return int(quarters * RESOLUTION + 0.5)
