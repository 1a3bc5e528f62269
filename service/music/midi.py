"""MIDI bytes to a `Piece`, through mido: formats 0 and 1 at any resolution, every time rounded to the nearest tick of our grid.

Nothing here knows tokens or a model. The way back is `service.music.midi_writer`.
"""

import io
import re
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Mapping
from itertools import chain
from typing import Any, NamedTuple

import mido
import numpy as np

from service.errors import InvalidMusic
from service.music.piece import (
    COMMON_TIME,
    NOTE,
    PEDAL,
    RESOLUTION,
    TEMPO,
    Hand,
    KeySignature,
    Piece,
    Records,
    TimeSignature,
    records,
    sort_notes,
)

DRUM_CHANNEL = 9  # General MIDI, counted from 0
SUSTAIN = 64  # controller number; values from 64 up mean "down"
MAX_BEATS = 100_000  # quarter notes, about 14 hours; a broken file with a later event would cost gigabytes of rests

# Track names by hand. Spanish, German, French and Italian scores name their staves too.
_HAND_NAMES = {
    Hand.RIGHT: re.compile(r"\b(right|upper|r\.?h|derecha|m\.?d|rechts?e?|droite|destra|treble)\b", re.IGNORECASE),
    Hand.LEFT: re.compile(r"\b(left|lower|l\.?h|izquierda|m\.?i|links?e?|gauche|sinistra|bass)\b", re.IGNORECASE),
}
_MAJOR_KEYS = "Cb Gb Db Ab Eb Bb F C G D A E B F# C#"  # from seven flats to seven sharps
_MINOR_KEYS = "Abm Ebm Bbm Fm Cm Gm Dm Am Em Bm F#m C#m G#m D#m A#m"
_KEYS = {
    name: (fifths, minor)
    for minor, names in ((False, _MAJOR_KEYS), (True, _MINOR_KEYS))
    for fifths, name in enumerate(names.split(), start=-7)
}


class _RawNote(NamedTuple):
    """A note in the file's own ticks."""

    track: int
    channel: int
    start: int
    end: int
    pitch: int
    velocity: int


def read_midi(data: bytes, hand_tracks: Mapping[int, Hand] | None = None, pickup_beats: float | None = None) -> Piece:
    """Read a MIDI file.

    Notes of one key on one channel are ended first in, first out. A note that is never ended ends with its track; a note of
    no length becomes one tick long. The drum channel is ignored. Hands come from `hand_tracks`, else from the names of the
    tracks, else, if exactly two parts play, the higher one is the right hand.

    Parameters
    ----------
    data : bytes
        The file.
    hand_tracks : mapping of int to Hand, optional
        Which track, counted from 0 with the conductor track, is which hand.
    pickup_beats : float, optional
        Quarter notes before the first full bar. If left out, it is read off a first bar shorter than the metre after it.

    Returns
    -------
    Piece
        Pitches may lie outside the piano (0..127); the notes may be none.

    Raises
    ------
    InvalidMusic
        If the bytes are not a MIDI file of format 0 or 1 counted in ticks per quarter note, or if it is longer than `MAX_BEATS`.
    """
    midi = _parse(data)
    scale = RESOLUTION / midi.ticks_per_beat
    raw, tempos, signatures, keys = [], [], [], []
    pedals: defaultdict[tuple[int, int], list[tuple[int, bool]]] = defaultdict(list)  # by track and channel
    names: dict[int, str] = {}
    copyright = ""
    for number, track in enumerate(midi.tracks):
        open_notes: defaultdict[tuple[int, int], deque[tuple[int, int]]] = defaultdict(deque)
        now = 0
        for message in track:
            now += message.time
            kind = message.type
            if kind in ("note_on", "note_off"):
                if message.channel == DRUM_CHANNEL:
                    continue
                waiting = open_notes[message.channel, message.note]
                if kind == "note_on" and message.velocity > 0:
                    waiting.append((now, message.velocity))
                elif waiting:
                    start, velocity = waiting.popleft()
                    raw.append(_RawNote(number, message.channel, start, now, message.note, velocity))
            elif kind == "control_change" and message.control == SUSTAIN and message.channel != DRUM_CHANNEL:
                pedals[number, message.channel].append((now, message.value >= 64))
            elif kind == "set_tempo" and message.tempo > 0:
                tempos.append((now, mido.tempo2bpm(message.tempo)))
            elif kind == "time_signature" and message.numerator > 0:
                signatures.append((now, message.numerator, message.denominator))
            elif kind == "key_signature":
                keys.append((now, message.key))
            elif kind == "track_name":
                names.setdefault(number, _text(message.name))
            elif kind == "copyright":
                copyright = copyright or _text(message.text)
        for (channel, pitch), waiting in open_notes.items():
            raw.extend(_RawNote(number, channel, start, now, pitch, velocity) for start, velocity in waiting)
    # A time has no bound in itself: a broken delta time of many bytes is a number that neither a float nor an array holds.
    events = chain(tempos, signatures, keys, *pedals.values())
    last = max(chain((note.end for note in raw), (event[0] for event in events)), default=0)
    if last > MAX_BEATS * midi.ticks_per_beat:
        raise InvalidMusic(f"the MIDI file is longer than {MAX_BEATS} quarter notes")
    # The name of a conductor track is the title, though it may speak of a hand.
    part_names = {track: name for track, name in names.items() if track or any(note.track == 0 for note in raw)}
    metre, pickup = _metre_map(_on_grid(signatures, scale), pickup_beats)
    key_map = _without_repeats(_on_grid(keys, scale))
    return Piece(
        notes=_note_records(raw, _hands(raw, part_names, hand_tracks), scale),
        tempos=records(TEMPO, _without_repeats(_tempos_on_grid(tempos, {note.start for note in raw}, midi.ticks_per_beat))),
        pedals=records(PEDAL, _pedal_changes(pedals.values(), scale)),
        time_signatures=metre,
        key_signatures=tuple(KeySignature(time, *_KEYS[name]) for time, name in key_map),
        pickup=pickup,
        title="" if _hands_named(part_names.get(0, "")) else names.get(0, ""),
        copyright=copyright,
    )


def _parse(data: bytes) -> mido.MidiFile:
    if data[:4] != b"MThd":
        raise InvalidMusic("not a MIDI file: it does not begin with MThd")
    try:
        # Files name their texts in latin-1 or UTF-8; latin-1 accepts every byte. clip: some editors write velocities above 127.
        midi = mido.MidiFile(file=io.BytesIO(data), charset="latin1", clip=True)
    except EOFError as error:
        raise InvalidMusic("the MIDI file is broken: it ends too early") from error
    except Exception as error:  # mido raises OSError, ValueError, IndexError, KeyError ... for broken bytes
        raise InvalidMusic(f"the MIDI file is broken: {str(error) or type(error).__name__}") from error
    if midi.type not in (0, 1):
        raise InvalidMusic(f"the MIDI format must be 0 or 1; got {midi.type}")
    if midi.ticks_per_beat == 0:
        raise InvalidMusic("the MIDI file has no ticks per quarter note")
    if midi.ticks_per_beat < 0:
        raise InvalidMusic("the MIDI file counts in frames per second, not in ticks per quarter note")
    return midi


def _text(latin1: str) -> str:
    """Return a text of the file, read as UTF-8 where its bytes are that, else as latin-1."""
    try:
        return latin1.encode("latin1").decode("utf-8")
    except UnicodeDecodeError:
        return latin1


def _on_grid(events: Iterable[tuple[Any, ...]], scale: float) -> list[tuple[Any, ...]]:
    """Return events, whose first item is a time in the file's ticks, by time, with that time on our grid."""
    return [(int(time * scale + 0.5), *rest) for time, *rest in sorted(events, key=lambda event: event[0])]


def _tempos_on_grid(tempos: list[tuple[int, float]], onsets: set[int], ticks_per_beat: int) -> list[tuple[int, float]]:
    """Return the tempo map on our grid, such that each tick has the tempo that the file has there.

    A change after a tick thus holds from the next one on, not from the nearest: the note on that tick still has the tempo before.
    But a change at the very onset of a note goes where the note goes, if no note stands on that tick already.
    """
    moved: list[tuple[int, float]] = []
    for time, qpm in sorted(tempos, key=lambda event: event[0])[::-1]:
        nearest = (2 * time * RESOLUTION + ticks_per_beat) // (2 * ticks_per_beat)
        with_note = time in onsets and nearest * ticks_per_beat / RESOLUTION not in onsets
        tick = nearest if with_note else -(-time * RESOLUTION // ticks_per_beat)
        moved.append((min(tick, moved[-1][0]) if moved else tick, qpm))  # never after the change that follows it
    return moved[::-1]


def _without_repeats(events: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """Keep of events at one time the last, and of equal ones in a row the first."""
    last = {time: rest for time, *rest in events}
    kept: list[tuple[Any, ...]] = []
    for time, rest in last.items():
        if not kept or list(kept[-1][1:]) != rest:
            kept.append((time, *rest))
    return kept


def _pedal_changes(parts: Iterable[list[tuple[int, bool]]], scale: float) -> list[tuple[int, bool]]:
    """Return the changes of the one pedal that all parts share."""
    # By time, then by how many events the part has had by then at that time: where two parts lift and press the pedal at once,
    # both lift it first.
    numbered = []
    for events in parts:
        had: Counter[int] = Counter()
        for time, down in events:
            numbered.append((time, had[time], down))
            had[time] += 1
    changes = _changes((time, down) for time, _, down in sorted(numbered, key=lambda event: event[:2]))
    return [(time, down) for time, down in _on_grid(changes, scale)]


def _changes(events: Iterable[tuple[Any, ...]]) -> list[tuple[int, bool]]:
    changes: list[tuple[int, bool]] = []
    for time, down in events:
        if down != (bool(changes) and changes[-1][1]):
            changes.append((time, down))
    return changes


def _metre_map(events: list[tuple[Any, ...]], pickup_beats: float | None) -> tuple[tuple[TimeSignature, ...], int]:
    """Return the metre from tick 0 on, and the ticks of the pick-up."""
    if not events or events[0][0] > 0:
        events = [tuple(COMMON_TIME), *events]
    signatures = [TimeSignature(*event) for event in _without_repeats(events)]
    pickup = 0
    if len(signatures) > 1 and signatures[0].bar_ticks == signatures[1].time < signatures[1].bar_ticks:
        pickup = signatures[0].bar_ticks
        signatures = [signatures[1]._replace(time=0), *signatures[2:]]
    if pickup_beats is not None:
        pickup = round(pickup_beats * RESOLUTION) % signatures[0].bar_ticks
    return tuple(signatures), pickup


def _hands(raw: list[_RawNote], names: dict[int, str], hand_tracks: Mapping[int, Hand] | None) -> dict[tuple[int, int], Hand]:
    """Return the hand of each part, a part being (track, channel)."""
    parts = sorted({(note.track, note.channel) for note in raw})
    if hand_tracks is not None:
        return {part: hand_tracks.get(part[0], Hand.UNKNOWN) for part in parts}
    named = {part: hand for part in parts for hand in _hands_named(names.get(part[0], ""))}
    if any(_hands_named(name) for name in names.values()):  # also the name of a track without notes: the rest is no hand then
        return {part: named.get(part, Hand.UNKNOWN) for part in parts}
    tracks = sorted({track for track, _ in parts})
    groups = [[p for p in parts if p[0] == t] for t in tracks] if len(tracks) > 1 else [[p] for p in parts]
    if len(groups) != 2:
        return dict.fromkeys(parts, Hand.UNKNOWN)
    means = [np.mean([note.pitch for note in raw if (note.track, note.channel) in group]) for group in groups]
    right = 0 if means[0] >= means[1] else 1
    return {part: Hand.RIGHT if i == right else Hand.LEFT for i, group in enumerate(groups) for part in group}


def _hands_named(name: str) -> list[Hand]:
    """Return the one hand that a track's name tells, or nothing."""
    found = [hand for hand, pattern in _HAND_NAMES.items() if pattern.search(name)]
    return found if len(found) == 1 else []


def _note_records(raw: list[_RawNote], hands: dict[tuple[int, int], Hand], scale: float) -> Records:
    notes = np.empty(len(raw), NOTE)
    if raw:
        columns = np.array(raw, dtype=np.int64).T
        starts, ends = (np.floor(columns[i] * scale + 0.5).astype(np.int64) for i in (2, 3))
        notes["time"] = starts
        notes["duration"] = np.maximum(ends - starts, 1)
        notes["pitch"] = columns[4]
        notes["velocity"] = columns[5].clip(1, 127)
        notes["hand"] = [hands[note.track, note.channel] for note in raw]
    return sort_notes(notes)
