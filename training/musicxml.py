"""MusicXML files to pieces, through muspy.

muspy 0.5 puts both staves of a piano into one track, loses the beat where the last voice of a bar is short, lets a tie that ends
nowhere swallow a later note, and plays the middle bars of a first ending twice. So a file is first written anew: a part for every
staff, every note at a stated place, every bar as long in one part as in the others, every bar of an ending marked as one. Grace
and cue notes are left out. Knows no other format; imports muspy when used.
"""

import tempfile
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import ZipFile

import numpy as np

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

Element = ET.Element

_KEPT_AT_THEIR_PLACE = ("attributes", "direction", "sound", "barline")
_DIVISIONS = 10080  # of a quarter note, in the repaired file: 2 * 7!, which holds every tuplet up to ten


class _Placed(NamedTuple):
    """Something in a bar, with its time from the beginning of that bar in quarter notes."""

    start: Fraction
    length: Fraction  # 0 for what is no note
    element: Element


class _Bar(NamedTuple):
    items: list[_Placed]
    length: Fraction  # to where its longest voice ends
    plays: bool  # whether it has a note; the rest of a bar that has none is often written too long

    @property
    def rank(self) -> tuple[bool, Fraction]:
        """Which of the parts' bars says how long the bar is: the greatest."""
        return self.plays, self.length


def read_musicxml(path: Path) -> Piece:
    """Read a MusicXML file, compressed (.mxl) or not. Repeats are played.

    Parameters
    ----------
    path : Path

    Returns
    -------
    Piece
        Two staves are right and left hand; with one, or more than two, the hand is unknown.

    Raises
    ------
    InvalidMusic
        If the file is not a MusicXML score by parts.
    """
    import muspy

    try:
        with tempfile.TemporaryDirectory() as folder:
            repaired = Path(folder) / "score.musicxml"
            ET.ElementTree(_repaired(_root(path))).write(repaired)
            return _piece_from_muspy(muspy.read_musicxml(repaired, resolution=_DIVISIONS))
    except InvalidMusic:
        raise
    except OSError:
        raise
    except Exception as error:  # ElementTree, zipfile and muspy raise a dozen kinds for files that are not what they should be
        raise InvalidMusic(f"the MusicXML file cannot be read: {error or type(error).__name__}") from error


def _root(path: Path) -> Element:
    if path.suffix.lower() != ".mxl":
        return ET.parse(path).getroot()
    with ZipFile(path) as archive:
        rootfile = ET.fromstring(archive.read("META-INF/container.xml")).find("rootfiles/rootfile")
        if rootfile is None:
            raise InvalidMusic("the .mxl archive does not say which of its files is the score")
        return ET.fromstring(archive.read(rootfile.get("full-path", "")))


def _repaired(root: Element) -> Element:
    """Return a score with one part per staff that muspy reads right."""
    if root.tag != "score-partwise":
        raise InvalidMusic(f"a MusicXML score by parts begins with score-partwise; got {root.tag}")
    parts = [_bars(part) for part in root.findall("part")]
    if not parts or len({len(bars) for bars in parts}) != 1:
        raise InvalidMusic("the parts of the MusicXML score have different numbers of bars")
    lengths = [max(bars, key=lambda bar: bar.rank).length for bars in zip(*parts, strict=True)]
    endings = _endings(parts[0])
    score = ET.Element("score-partwise")
    score.extend(root.findall("work") + root.findall("movement-title") + root.findall("identification"))
    part_list = ET.SubElement(score, "part-list")
    for bars in parts:
        for staff in _staves(bars):
            name = f"P{len(part_list)}"
            ET.SubElement(ET.SubElement(part_list, "score-part", id=name), "part-name").text = name
            part = ET.SubElement(score, "part", id=name)
            struck = _struck(bars, lengths, staff)
            start = Fraction(0)
            for bar, length, ending in zip(bars, lengths, endings, strict=True):
                measure = _measure(bar, length, staff, start, struck)
                if ending:
                    ET.SubElement(ET.SubElement(measure, "barline"), "ending", number=ending)
                part.append(measure)
                start += length
    return score


def _bars(part: Element) -> list[_Bar]:
    """Return the bars of a part with everything at its place."""
    divisions = Fraction(1)
    bars = []
    for measure in part.findall("measure"):
        now = end = start = Fraction(0)
        items = []
        for element in measure:
            divisions = Fraction(element.findtext("divisions") or divisions)
            length = Fraction(element.findtext("duration") or 0) / divisions
            if element.tag == "backup":
                now -= length
            elif element.tag == "forward":
                now += length
            elif element.tag == "note" and element.find("grace") is None:
                if element.find("chord") is None:
                    start = now
                    now += length
                if all(element.find(tag) is None for tag in ("rest", "cue", "unpitched")):
                    items.append(_Placed(start, length, element))
            elif element.tag in _KEPT_AT_THEIR_PLACE:
                items.append(_Placed(now, Fraction(0), element))
            end = max(end, now)
        bars.append(_Bar(items, end, any(item.element.tag == "note" for item in items)))
    return bars


def _endings(bars: list[_Bar]) -> list[str]:
    """Return for each bar the numbers of the ending that it belongs to, or ""; a file marks the first and the last bar only."""
    found, current = [], ""
    for bar in bars:
        marks = [ending for item in bar.items for ending in item.element.findall("ending")]
        current = next((m.get("number", "") for m in marks if m.get("type") == "start"), current)
        found.append(current)
        if any(m.get("type") != "start" for m in marks):
            current = ""
    return found


def _staff(item: _Placed) -> str:
    return item.element.findtext("staff") or "1"


def _staves(bars: list[_Bar]) -> list[str]:
    """Return the staves of a part that have notes, from the top down."""
    return sorted({_staff(item) for bar in bars for item in bar.items if item.element.tag == "note"}, key=lambda s: (len(s), s))


def _pitch(item: _Placed) -> tuple[str | None, ...]:
    return tuple(item.element.findtext(f"pitch/{name}") for name in ("step", "alter", "octave"))


def _struck(bars: list[_Bar], lengths: list[Fraction], staff: str) -> set[tuple[Any, ...]]:
    """Return time and pitch of every note of a staff."""
    found = set()
    start = Fraction(0)
    for bar, length in zip(bars, lengths, strict=True):
        found |= {(start + i.start, _pitch(i)) for i in bar.items if i.element.tag == "note" and _staff(i) == staff}
        start += length
    return found


def _measure(bar: _Bar, length: Fraction, staff: str, start: Fraction, struck: set[tuple[Any, ...]]) -> Element:
    """Return a bar of one staff. Between its items stand moves to where the next one is, so that muspy need not infer it."""
    measure = ET.Element("measure")
    now = Fraction(0)
    for item in sorted(bar.items, key=lambda item: item.start):
        if item.element.tag == "note" and _staff(item) != staff:
            continue
        measure.extend(_move(item.start - now))
        now = item.start + item.length
        if item.element.tag != "note":
            measure.append(_without(item.element, "divisions", "ending"))
            continue
        note = ET.SubElement(measure, "note")
        note.extend(item.element.findall("pitch"))
        ET.SubElement(note, "duration").text = str(round(item.length * _DIVISIONS))
        # Some programs write no end of a tie, others a beginning where there is no tie: what counts is that the key goes on.
        if any(tie.get("type") == "start" for tie in item.element.findall("tie")) and (start + now, _pitch(item)) in struck:
            ET.SubElement(note, "tie", type="start")
    measure.extend(_move(length - now))
    attributes = ET.Element("attributes")
    ET.SubElement(attributes, "divisions").text = str(_DIVISIONS)
    measure.insert(0, attributes)
    return measure


def _without(element: Element, *tags: str) -> Element:
    copy = ET.Element(element.tag, element.attrib)
    copy.extend(child for child in element if child.tag not in tags)
    return copy


def _move(length: Fraction) -> Iterator[Element]:
    if length:
        move = ET.Element("forward" if length > 0 else "backup")
        ET.SubElement(move, "duration").text = str(abs(round(length * _DIVISIONS)))
        yield move


def _piece_from_muspy(music: Any) -> Piece:
    """Return the piece that a muspy.Music holds, its tracks being staves."""
    scale = RESOLUTION / music.resolution

    def tick(time: int) -> int:
        return int(np.floor(time * scale + 0.5))

    hands = (Hand.RIGHT, Hand.LEFT) if len(music.tracks) == 2 else (Hand.UNKNOWN,) * len(music.tracks)
    notes = [
        (tick(n.time), n.pitch, max(1, tick(n.end) - tick(n.time)), min(max(n.velocity or DEFAULT_VELOCITY, 1), 127), hand)
        for track, hand in zip(music.tracks, hands, strict=True)
        for n in track.notes
    ]
    signatures = {tick(s.time): (s.numerator, s.denominator) for s in music.time_signatures}
    metre = tuple(TimeSignature(time, *signature) for time, signature in sorted({0: (4, 4), **signatures}.items()))
    bars = sorted({tick(barline.time) for barline in music.barlines})
    pickup = bars[1] if len(bars) > 1 and bars[1] < metre[0].bar_ticks else 0
    keys = {tick(k.time): (k.fifths, k.mode == "minor") for k in music.key_signatures if abs(k.fifths) <= 7}
    return Piece(
        notes=sort_notes(records(NOTE, notes)),
        tempos=records(TEMPO, sorted({tick(t.time): float(t.qpm) for t in music.tempos if t.qpm > 0}.items())),
        time_signatures=metre,
        key_signatures=tuple(KeySignature(time, *key) for time, key in sorted(keys.items())),
        pickup=pickup,
        title=music.metadata.title or "",
        copyright=music.metadata.copyright or "",
    )
