"""Names of pitches to MIDI numbers and back: letters (C#4), flats (Db4), and the syllables of the solfège (re#4, mib3).

C4 is middle C, 60. `service.music.keys` reads the names of keys with the same tables. Nothing here knows how a request looks.
"""

import re
import unicodedata

from service.errors import InvalidMusic
from service.music.piece import HIGHEST_PITCH, LOWEST_PITCH

STEPS = {"c": 0, "d": 2, "e": 4, "f": 5, "g": 7, "a": 9, "b": 11}  # semitones above C
SYLLABLES = {"do": "c", "ut": "c", "re": "d", "ré": "d", "mi": "e", "fa": "f", "sol": "g", "la": "a", "si": "b", "ti": "b"}
ACCIDENTALS = {"": 0, "♮": 0, "#": 1, "♯": 1, "##": 2, "♯♯": 2, "x": 2, "𝄪": 2, "b": -1, "♭": -1, "bb": -2, "♭♭": -2, "𝄫": -2}
_SHARPS = ("C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B")
_NAME = re.compile(
    rf"(?P<step>{'|'.join([*SYLLABLES, *STEPS])})(?P<accidental>{'|'.join(sorted(ACCIDENTALS, key=len, reverse=True))})"
    r"(?P<octave>-?[0-9])?"
)
_PLAIN_LETTERS = str.maketrans("łøđ", "lod")  # which Unicode does not take apart into letter and accent


def fold(text: str) -> str:
    """Return a text without accents and capitals, as names are compared: "Żeleński" is "zelenski"."""
    letters = (c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    return "".join(letters).casefold().translate(_PLAIN_LETTERS).strip()


def parse_pitch_name(name: str) -> int:
    """Return the MIDI number of a pitch.

    Parameters
    ----------
    name : str
        A letter or syllable, an accidental if any (#, ♯, b, ♭, doubled or not, x), and the octave: "C#4", "Db4", "re#4", "si3".
        Capitals do not matter. The octave is that of the letter, so B#3 is C4.

    Raises
    ------
    InvalidMusic
        If this is no such name, lacks the octave, or names a pitch that is no key of the piano.
    """
    match = _NAME.fullmatch(unicodedata.normalize("NFC", name).strip().casefold())
    if match is None:
        raise InvalidMusic("not the name of a note; names look like C#4, Db4 or re#4, where C4 is middle C")
    if match["octave"] is None:
        raise InvalidMusic(f"the name of a note needs its octave, as in {name.strip()}4")
    step = STEPS[SYLLABLES.get(match["step"], match["step"])]
    number = 12 * (int(match["octave"]) + 1) + step + ACCIDENTALS[match["accidental"]]
    if not LOWEST_PITCH <= number <= HIGHEST_PITCH:
        raise InvalidMusic(f"outside the piano, whose keys run from {pitch_name(LOWEST_PITCH)} to {pitch_name(HIGHEST_PITCH)}")
    return number


def pitch_name(number: int) -> str:
    """Return the name of a MIDI number, with a sharp where it needs one: 61 is "C#4"."""
    octave, step = divmod(number, 12)
    return f"{_SHARPS[step]}{octave - 1}"
