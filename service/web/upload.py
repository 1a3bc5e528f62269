"""A MIDI file as the melody of a request.

A file is small here: a melody has 2,048 notes at most, and what takes long to read is refused by its length.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from service.errors import InvalidMusic
from service.music.midi import read_midi
from service.music.piece import HIGHEST_PITCH, LOWEST_PITCH, RESOLUTION, Hand, Piece, Records
from service.music.representation import TIME_SIGNATURES
from service.web.player import Player

MEDIA_TYPES = ("audio/midi", "audio/x-midi", "audio/mid", "audio/sp-midi")
MAX_FILE_BYTES = 65536  # some 10,000 events; the slowest such file takes 0.2 s to read
MAX_NOTES = 2048  # as in a melody of JSON
MIDDLE_C = 60  # parts two hands in a file that does not
MAX_QUARTERS = 4096  # from the beginning to the last onset, as there
TEMPO_RANGE = (20.0, 300.0)  # of a request
# A number in the file ends with a byte below 128. The standard allows 4 bytes; mido reads any number of them, in a time that
# grows with its square. Texts have such bytes, too: 682 Chinese characters without a blank.
MAX_HIGH_BYTES = 2048
_TOO_MANY_HIGH_BYTES = re.compile(rb"[\x80-\xff]{%d,}" % (MAX_HIGH_BYTES + 1))


@dataclass(frozen=True, eq=False)
class Upload:
    """What a request takes from a file.

    Attributes
    ----------
    melody : structured array of dtype NOTE
        In canonical order. A key that is struck while it is held ends there; of notes on one key at one onset the longest stays.
    time_signature : str
        The first one of the file.
    qpm : float
        Tempo at its first note, in quarter notes per minute.
    """

    melody: Records
    time_signature: str
    qpm: float

    def fill_in(self, fields: Mapping[str, Any], player: Player) -> dict[str, Any]:
        """Return fields of a request with the metre and tempo of the file, where they are left out and can be asked for."""
        filled = dict(fields)
        if self.time_signature in TIME_SIGNATURES and self.time_signature in player.values("metre"):
            filled.setdefault("time_signature", self.time_signature)
        if player.values("tempo") and TEMPO_RANGE[0] <= self.qpm <= TEMPO_RANGE[1]:
            filled.setdefault("tempo", round(self.qpm, 3))
        return filled


def read_upload(data: bytes) -> Upload:
    """Read the MIDI file of a request.

    Raises
    ------
    InvalidMusic
        If it is no MIDI file, has no notes, too many or too late ones, or such as no piano has, or numbers of thousands of
        bytes.
    """
    if many := _TOO_MANY_HIGH_BYTES.search(data):
        raise InvalidMusic(f"the MIDI file must have at most {MAX_HIGH_BYTES} bytes above 127 in a row; it has {len(many[0])}")
    piece = read_midi(data)
    notes = _one_note_a_key(piece.notes)
    if not 1 <= len(notes) <= MAX_NOTES:
        raise InvalidMusic(f"the MIDI file must have 1 to {MAX_NOTES} notes; it has {len(notes)}")
    off = notes["pitch"][(notes["pitch"] < LOWEST_PITCH) | (notes["pitch"] > HIGHEST_PITCH)]
    if len(off):
        raise InvalidMusic(f"its notes must be in [{LOWEST_PITCH}, {HIGHEST_PITCH}], as on a piano; got {off[0]}")
    last = int(notes["time"][-1]) / RESOLUTION
    if last > MAX_QUARTERS:
        raise InvalidMusic(f"its last note must start within {MAX_QUARTERS} quarter notes; it starts at {last:g}")
    unknown = notes["hand"] == Hand.UNKNOWN
    notes["hand"][unknown] = np.where(notes["pitch"][unknown] < MIDDLE_C, Hand.LEFT, Hand.RIGHT)
    return Upload(notes, _first_metre(piece), float(piece.tempo_at(notes["time"][:1])[0]))


def _one_note_a_key(notes: Records) -> Records:
    """Return notes of which no two hold one key at once, in canonical order."""
    by_key = np.lexsort((-notes["duration"], notes["time"], notes["pitch"]))
    notes = notes[by_key]
    same_key = np.diff(notes["pitch"]) == 0
    again = same_key & (np.diff(notes["time"]) == 0)
    notes = notes[np.concatenate([[True], ~again]) if len(notes) else slice(0)]
    gap = np.where(np.diff(notes["pitch"]) == 0, np.diff(notes["time"]), np.iinfo(np.int64).max)
    notes["duration"][:-1] = np.minimum(notes["duration"][:-1], gap)
    order = np.lexsort((notes["hand"], notes["pitch"], notes["time"]))
    kept: Records = notes[order]
    return kept


def _first_metre(piece: Piece) -> str:
    metre = piece.time_signatures[0]
    return f"{metre.numerator}/{metre.denominator}"
