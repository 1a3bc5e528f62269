"""MIDI bytes to a `Piece` and back, through mido.

Reading takes formats 0 and 1 at any resolution and rounds every time to the nearest tick of our grid. Writing makes format 1:
a conductor track (texts, tempo map, metre, key), then one named track per hand with its notes and the pedal.
Nothing here knows tokens or a model.
"""

import io
import re
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import mido
import numpy as np

from service.errors import InvalidMusic
from service.music.piece import (
    COMMON_TIME,
    DEFAULT_QPM,
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

WRITTEN_TICKS_PER_BEAT = 20 * RESOLUTION  # 480, what editors expect; a multiple, so that no time is rounded
DRUM_CHANNEL = 9  # General MIDI, counted from 0
SUSTAIN = 64  # controller number; values from 64 up mean "down"
MAX_BEATS = 100_000  # quarter notes, about 14 hours; a broken file with a later event would cost gigabytes of rests

# Track names by hand. Spanish, German, French and Italian scores name their staves too.
_HAND_NAMES = {
    Hand.RIGHT: re.compile(r"\b(right|upper|r\.?h|derecha|m\.?d|rechts?e?|droite|destra|treble)\b", re.IGNORECASE),
    Hand.LEFT: re.compile(r"\b(left|lower|l\.?h|izquierda|m\.?i|links?e?|gauche|sinistra|bass)\b", re.IGNORECASE),
}
_TRACKS = ((Hand.RIGHT, "right hand"), (Hand.LEFT, "left hand"), (Hand.UNKNOWN, "piano"))
# Each hand's first channel; the rest, without the drums, take notes that would strike a key that its channel still holds.
_CHANNELS = {Hand.RIGHT: 0, Hand.LEFT: 1, Hand.UNKNOWN: 2}
_SPARE_CHANNELS = [c for c in range(3, 16) if c != DRUM_CHANNEL]
_MAJOR_KEYS = "Cb Gb Db Ab Eb Bb F C G D A E B F# C#"  # from seven flats to seven sharps
_MINOR_KEYS = "Abm Ebm Bbm Fm Cm Gm Dm Am Em Bm F#m C#m G#m D#m A#m"
_KEYS = {
    (fifths, minor): name
    for minor, names in ((False, _MAJOR_KEYS), (True, _MINOR_KEYS))
    for fifths, name in enumerate(names.split(), start=-7)
}
_KEYS_BY_NAME = {name: key for key, name in _KEYS.items()}


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
    last = max([note.end for note in raw] + [events[-1][0] for events in pedals.values()], default=0)
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
        key_signatures=tuple(KeySignature(time, *_KEYS_BY_NAME[name]) for time, name in key_map),
        pickup=pickup,
        title="" if _hands_named(part_names.get(0, "")) else names.get(0, ""),
        copyright=copyright,
    )


def write_midi(piece: Piece, end: int = 0) -> bytes:
    """Write a piece as a MIDI file of format 1.

    Every note on has its note off; a key that is struck again while it sounds goes to another channel, so that any reader pairs
    them as they are here. The pedal is let go at the end.

    Parameters
    ----------
    piece : Piece
        The music. Times are written exactly.
    end : int
        Tick at which the tracks end, if the last note ends before.

    Returns
    -------
    bytes
        The file.

    Raises
    ------
    InvalidMusic
        If more notes hold one key at once than MIDI has channels for.
    """
    midi = mido.MidiFile(type=1, ticks_per_beat=WRITTEN_TICKS_PER_BEAT, charset="utf-8")
    end = max(end, piece.end)
    midi.tracks.append(_conductor_track(piece, end))
    channels = _assign_channels(piece.notes)
    hands = piece.notes["hand"]
    for hand, name in _TRACKS:
        chosen = hands == hand
        if hand is Hand.UNKNOWN and not chosen.any():
            continue
        midi.tracks.append(_hand_track(name, _CHANNELS[hand], piece.notes[chosen], channels[chosen], piece.pedals, end))
    out = io.BytesIO()
    midi.save(file=out)
    return out.getvalue()


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


def _conductor_track(piece: Piece, end: int) -> mido.MidiTrack:
    events: list[tuple[int, mido.MetaMessage]] = []
    if piece.title:
        events.append((0, mido.MetaMessage("track_name", name=piece.title)))
    if piece.copyright:
        events.append((0, mido.MetaMessage("copyright", text=piece.copyright)))
    for time, numerator, denominator in _written_metre(piece):
        events.append((time, mido.MetaMessage("time_signature", numerator=numerator, denominator=denominator)))
    for key in piece.key_signatures:
        events.append((key.time, mido.MetaMessage("key_signature", key=_KEYS[key.fifths, key.minor])))
    if not len(piece.tempos) or piece.tempos["time"][0] > 0:
        events.append((0, mido.MetaMessage("set_tempo", tempo=mido.bpm2tempo(DEFAULT_QPM))))
    for time, qpm in piece.tempos:
        events.append((int(time), mido.MetaMessage("set_tempo", tempo=mido.bpm2tempo(float(qpm)))))
    return _track(sorted(events, key=lambda event: event[0]), end)


def _written_metre(piece: Piece) -> Iterator[tuple[int, int, int]]:
    """Yield the metre map with the pick-up as a short first bar, which is how notation programs write it."""
    signatures = piece.time_signatures or (COMMON_TIME,)
    if piece.pickup:
        denominator = next(d for d in (4, 8, 16, 32, 32 * 3) if (piece.pickup * d) % (4 * RESOLUTION) == 0)
        if denominator in (4, 8, 16, 32):  # MIDI knows powers of two only; a stranger pick-up is left to the reader
            yield 0, piece.pickup * denominator // (4 * RESOLUTION), denominator
            yield piece.pickup, *signatures[0][1:]
            yield from signatures[1:]
            return
    yield from signatures


def _assign_channels(notes: Records) -> Records:
    """Return a channel for each note (canonical order), none of them holding one key twice at a time."""
    free_from: dict[tuple[int, int], int] = {}
    channels = np.empty(len(notes), np.int64)
    columns = (notes[name].tolist() for name in ("time", "pitch", "duration", "hand"))
    for i, (time, pitch, duration, hand) in enumerate(zip(*columns, strict=True)):
        own = _CHANNELS[hand]
        for channel in (own, *_SPARE_CHANNELS):
            # The spare channels are shared by the tracks, whose events at one tick a player may take in any order.
            if free_from.get((channel, pitch), -1) < time + (channel == own):
                break
        else:
            raise InvalidMusic(f"more than {len(_SPARE_CHANNELS) + 1} notes hold the key {pitch} at tick {time}")
        free_from[channel, pitch] = time + duration
        channels[i] = channel
    return channels


def _hand_track(name: str, channel: int, notes: Records, channels: Records, pedals: Records, end: int) -> mido.MidiTrack:
    # Sort keys at one time: note offs first, so that a key can be struck again; then the pedal; then note ons.
    events = [
        (time * 4, mido.Message("note_on", channel=c, note=pitch, velocity=velocity))
        for time, pitch, velocity, c in zip(
            *(notes[f].tolist() for f in ("time", "pitch", "velocity")), channels.tolist(), strict=True
        )
    ]
    events = [(time + 3, message) for time, message in events]
    ends = (notes["time"] + notes["duration"]).tolist()
    events += [
        (time * 4, mido.Message("note_off", channel=c, note=pitch, velocity=0))
        for time, pitch, c in zip(ends, notes["pitch"].tolist(), channels.tolist(), strict=True)
    ]
    used = sorted({channel, *channels.tolist()})
    for time, down in pedals.tolist():
        events += [(time * 4 + 1, _pedal(c, down)) for c in used]
    if len(pedals) and pedals["down"][-1]:
        end = max(end, int(pedals["time"][-1]))
        events += [(end * 4 + 2, _pedal(c, False)) for c in used]
    start = [(0, mido.MetaMessage("track_name", name=name))]
    start += [(0, mido.Message("program_change", channel=c, program=0)) for c in used]
    return _track(start + [(key // 4, m) for key, m in sorted(events, key=lambda event: event[0])], end)


def _pedal(channel: int, down: bool) -> mido.Message:
    return mido.Message("control_change", channel=channel, control=SUSTAIN, value=127 if down else 0)


def _track(events: list[tuple[int, Any]], end: int) -> mido.MidiTrack:
    """Return a track from messages with absolute times in our ticks, in order, ended at `end` or after the last of them."""
    scale = WRITTEN_TICKS_PER_BEAT // RESOLUTION
    track = mido.MidiTrack()
    now = 0
    for time, message in [*events, (max(end, events[-1][0]), mido.MetaMessage("end_of_track"))]:
        message.time = (time - now) * scale
        track.append(message)
        now = time
    return track
