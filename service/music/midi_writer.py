"""A `Piece` to the bytes of a MIDI file of format 1: a conductor track (texts, metre, key, tempo map), then one track per hand.

Byte by byte after the Standard MIDI File specification, where reading goes through mido: its message objects took six times as
long, which was an eighth of all that a request costs. Nothing here knows tokens or a model.
"""

from collections.abc import Iterator

import numpy as np

from service.errors import InvalidMusic
from service.music.midi import DRUM_CHANNEL, SUSTAIN
from service.music.piece import COMMON_TIME, DEFAULT_QPM, RESOLUTION, Hand, Piece, Records

WRITTEN_TICKS_PER_BEAT = 20 * RESOLUTION  # 480, what editors expect; a multiple, so that no time is rounded
_SCALE = WRITTEN_TICKS_PER_BEAT // RESOLUTION
_TRACKS = ((Hand.RIGHT, "right hand"), (Hand.LEFT, "left hand"), (Hand.UNKNOWN, "piano"))
# Each hand's first channel; the rest, without the drums, take notes that would strike a key that its channel still holds.
_CHANNELS = {Hand.RIGHT: 0, Hand.LEFT: 1, Hand.UNKNOWN: 2}
_SPARE_CHANNELS = [c for c in range(3, 16) if c != DRUM_CHANNEL]
_NOTE_OFF, _NOTE_ON, _CONTROL_CHANGE, _PROGRAM_CHANGE = 0x80, 0x90, 0xB0, 0xC0  # with the channel in the lower four bits
_META = 0xFF
_COPYRIGHT, _TRACK_NAME, _END_OF_TRACK, _SET_TEMPO, _TIME_SIGNATURE, _KEY_SIGNATURE = 0x02, 0x03, 0x2F, 0x51, 0x58, 0x59

_Event = tuple[int, bytes]  # the tick, or a number that sorts as it does, and the message


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
    end = max(end, piece.end)
    tracks = [_conductor_track(piece, end)]
    channels = _assign_channels(piece.notes)
    hands = piece.notes["hand"]
    for hand, name in _TRACKS:
        chosen = hands == hand
        if hand is Hand.UNKNOWN and not chosen.any():
            continue
        tracks.append(_hand_track(name, _CHANNELS[hand], piece.notes[chosen], channels[chosen], piece.pedals, end))
    header = b"".join(number.to_bytes(2) for number in (1, len(tracks), WRITTEN_TICKS_PER_BEAT))
    return b"".join([_chunk(b"MThd", header), *tracks])


def _conductor_track(piece: Piece, end: int) -> bytes:
    events: list[_Event] = []
    if piece.title:
        events.append((0, _meta(_TRACK_NAME, piece.title.encode())))
    if piece.copyright:
        events.append((0, _meta(_COPYRIGHT, piece.copyright.encode())))
    for time, numerator, denominator in _written_metre(piece):
        # The denominator's power of two; then what every program writes: clocks of a metronome's beat, 32nds of a quarter note.
        events.append((time, _meta(_TIME_SIGNATURE, bytes((numerator, denominator.bit_length() - 1, 24, 8)))))
    for key in piece.key_signatures:
        events.append((key.time, _meta(_KEY_SIGNATURE, bytes((key.fifths & 0xFF, key.minor)))))
    if not len(piece.tempos) or piece.tempos["time"][0] > 0:
        events.append((0, _tempo(DEFAULT_QPM)))
    events += [(time, _tempo(qpm)) for time, qpm in piece.tempos.tolist()]
    return _track(sorted(events, key=_first), end)


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


def _hand_track(name: str, channel: int, notes: Records, channels: Records, pedals: Records, end: int) -> bytes:
    # Sort keys at one time: note offs first, so that a key can be struck again; then the pedal; then note ons.
    numbers = (notes[field].tolist() for field in ("time", "duration", "pitch", "velocity"))
    events: list[_Event] = []
    offs: list[_Event] = []
    for time, duration, pitch, velocity, c in zip(*numbers, channels.tolist(), strict=True):
        events.append((time * 4 + 3, bytes((_NOTE_ON | c, pitch, velocity))))
        offs.append(((time + duration) * 4, bytes((_NOTE_OFF | c, pitch, 0))))
    events += offs
    used = sorted({channel, *channels.tolist()})
    for time, down in pedals.tolist():
        events += [(time * 4 + 1, _pedal(c, down)) for c in used]
    if len(pedals) and pedals["down"][-1]:
        end = max(end, int(pedals["time"][-1]))
        events += [(end * 4 + 2, _pedal(c, False)) for c in used]
    events.sort(key=_first)
    start = [(0, _meta(_TRACK_NAME, name.encode())), *((0, bytes((_PROGRAM_CHANGE | c, 0))) for c in used)]
    return _track(start + [(key // 4, message) for key, message in events], end)


def _pedal(channel: int, down: bool) -> bytes:
    return bytes((_CONTROL_CHANGE | channel, SUSTAIN, 127 if down else 0))


def _tempo(qpm: float) -> bytes:
    return _meta(_SET_TEMPO, round(60_000_000 / qpm).to_bytes(3))


def _meta(kind: int, data: bytes) -> bytes:
    return bytes((_META, kind)) + _variable_length(len(data)) + data


def _first(event: _Event) -> int:
    return event[0]


def _track(events: list[_Event], end: int) -> bytes:
    """Return a track from messages at ticks of ours, in order, ended at `end` or after the last of them."""
    data = bytearray()
    now = status = 0
    for time, message in [*events, (max(end, events[-1][0]), _meta(_END_OF_TRACK, b""))]:
        data += _variable_length((time - now) * _SCALE)
        data += message[1:] if message[0] == status != _META else message  # "running status": the same as before is left out
        now, status = time, message[0]
    return _chunk(b"MTrk", bytes(data))


def _chunk(name: bytes, data: bytes) -> bytes:
    return name + len(data).to_bytes(4) + data


def _variable_length(number: int) -> bytes:
    """Return a number as seven bits a byte, the highest first, with the eighth bit set in all bytes but the last."""
    if number < 0x80:
        return bytes((number,))
    groups = [number & 0x7F]
    while number := number >> 7:
        groups.append(number & 0x7F | 0x80)
    return bytes(reversed(groups))
