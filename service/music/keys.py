"""The 24 keys and their names. 0..11 are C major to B major by semitones, 12..23 C minor to B minor.

Names are read in letters and in the syllables of the solfège: "F# minor", "sib mayor", "re sostenido menor".
"""

import re
from typing import NamedTuple

from service.errors import InvalidMusic
from service.music.names import ACCIDENTALS, STEPS, SYLLABLES, fold

_TONICS = {
    "major": ("C", "Db", "D", "Eb", "E", "F", "F#", "G", "Ab", "A", "Bb", "B"),
    "minor": ("C", "C#", "D", "Eb", "E", "F", "F#", "G", "G#", "A", "Bb", "B"),
}
# The spelling with the fewest accidentals in the signature; of F# and Gb, Eb and D# minor, which have six, the more usual one.
KEY_NAMES = tuple(f"{tonic} {mode}" for mode, tonics in _TONICS.items() for tonic in tonics)

# Folded (see `service.music.names.fold`), in English, Spanish, French and Italian.
_MINOR = {
    "major": 0, "maj": 0, "mayor": 0, "majeur": 0, "maggiore": 0, "minor": 1, "min": 1, "menor": 1, "mineur": 1, "minore": 1,
}  # fmt: skip
_WORDS = {"sharp": 1, "sostenido": 1, "diese": 1, "diesis": 1, "flat": -1, "bemol": -1, "bemolle": -1, "natural": 0}
_OFFSETS = {**ACCIDENTALS, **_WORDS}  # in semitones
_NAME = re.compile(
    rf"(?P<step>{'|'.join([*SYLLABLES, *STEPS])})[\s_-]*(?P<accidental>{'|'.join(sorted(_OFFSETS, key=len, reverse=True))})"
    rf"[\s_-]*(?P<mode>{'|'.join(_MINOR)})?"
)
MOST_FIFTHS = 7  # sharps or flats of a key signature


class Key(NamedTuple):
    """A key with the signature of its spelling: Gb major has six flats where F# major has six sharps."""

    number: int  # 0..23, the place in KEY_NAMES
    fifths: int  # sharps of the signature; negative: flats

    @property
    def minor(self) -> bool:
        """Whether the key is a minor one."""
        return self.number >= len(KEY_NAMES) // 2


def parse_key(name: str) -> Key:
    """Return the key of a name.

    Parameters
    ----------
    name : str
        A letter or syllable, an accidental if any (a sign or a word), and the mode. Capitals and accents do not matter.

    Returns
    -------
    Key
        A spelling with more than seven sharps or flats, such as G# major, has the signature of its usual name.

    Raises
    ------
    InvalidMusic
        If this is no such name, or lacks the mode.
    """
    match = _NAME.fullmatch(fold(name))
    if match is None:
        raise InvalidMusic("not the name of a key; names look like C major, F# minor, la menor or sib mayor")
    if match["mode"] is None:
        raise InvalidMusic(f"the name of a key needs its mode, as in {name.strip()} major or {name.strip()} minor")
    step, offset, minor = STEPS[SYLLABLES.get(match["step"], match["step"])], _OFFSETS[match["accidental"]], _MINOR[match["mode"]]
    number = 12 * minor + (step + offset) % 12
    fifths = _fifths(step, offset, minor)
    return Key(number, fifths) if abs(fifths) <= MOST_FIFTHS else parse_key(KEY_NAMES[number])


def _fifths(step: int, offset: int, minor: int) -> int:
    """Return the sharps of a key: a natural tonic is so many fifths above C, from F on; a sharp is seven, minor three less."""
    return (7 * step + 1) % 12 - 1 + 7 * offset - 3 * minor
