"""The melody of a request to notes: what an item leaves out follows the item before it.

Takes items that the contract has let pass. Times come in quarter notes and leave in ticks, rounded to the nearest one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from service.errors import InvalidMusic, InvalidRequest, Violation
from service.music.names import parse_pitch_name, pitch_name
from service.music.piece import DEFAULT_VELOCITY, NOTE, RESOLUTION, Hand, Records, records, sort_notes
from service.web.violations import MAX_VIOLATIONS, Path, pointer, quoted, shown

MAX_HELD = 8  # notes of a melody that hold one key at once: two hands and some slack, and MIDI has channels to write them

HANDS = {"right": Hand.RIGHT, "left": Hand.LEFT}


@dataclass(frozen=True)
class _Event:
    """Notes that start and end together; `path` is where their item stands in the request."""

    path: Path
    pitches: tuple[int, ...] = ()
    start: int = 0
    duration: int = RESOLUTION // 2
    velocity: int = DEFAULT_VELOCITY
    hand: Hand = Hand.RIGHT


def parse_melody(items: Sequence[Any]) -> Records:
    """Return the notes of a melody, dtype NOTE, in canonical order.

    Parameters
    ----------
    items : sequence of int, str, list or mapping
        `seed` of a request.

    Raises
    ------
    InvalidRequest
        If a name is none, a key is struck twice at one start, or more than MAX_HELD notes hold one key at once.
    """
    events: list[_Event] = []
    violations: list[Violation] = []
    event = _Event(path=())
    end = 0
    for i, item in enumerate(items):
        path: Path = ("seed", i)
        try:
            event = _read_item(item, replace(event, path=path, start=end))
        except InvalidRequest as error:
            violations.extend(error.violations)
            continue
        end = event.start + event.duration
        events.append(event)
    violations = violations or _find_collisions(events)
    if violations:
        raise InvalidRequest(violations[:MAX_VIOLATIONS])
    rows = [(e.start, pitch, e.duration, e.velocity, e.hand) for e in events for pitch in e.pitches]
    return sort_notes(records(NOTE, rows))


def _read_item(item: Any, before: _Event) -> _Event:
    """Return an item's notes; what it does not say is as in `before`."""
    if not isinstance(item, Mapping):
        return replace(before, pitches=_read_pitches(item, before.path))
    return replace(
        before,
        pitches=_read_pitches(item["pitch"], (*before.path, "pitch")),
        start=_ticks(item["start"]) if "start" in item else before.start,
        duration=max(1, _ticks(item["duration"])) if "duration" in item else before.duration,
        velocity=int(item.get("velocity", before.velocity)),
        hand=HANDS[item["hand"]] if "hand" in item else before.hand,
    )


def _read_pitches(value: Any, path: Path) -> tuple[int, ...]:
    if isinstance(value, list):
        return tuple(pitch for i, inner in enumerate(value) for pitch in _read_pitches(inner, (*path, i)))
    if isinstance(value, str):
        try:
            return (parse_pitch_name(value),)
        except InvalidMusic as error:
            raise InvalidRequest([Violation(pointer(path), f"{quoted(path)} is {shown(value)}: {error}")]) from None
    return (int(value),)


def _ticks(quarters: float) -> int:
    return int(quarters * RESOLUTION + 0.5)


def _find_collisions(events: Sequence[_Event]) -> list[Violation]:
    """Return a violation for each event that strikes a key twice at one start, or one that too many notes hold."""
    violations = []
    held: dict[int, list[tuple[int, int]]] = {}  # by pitch: start and end of the notes that may still sound
    for event in sorted(events, key=lambda event: event.start):
        for pitch in event.pitches:
            sounding = [(start, end) for start, end in held.get(pitch, []) if end > event.start]
            held[pitch] = [*sounding[-MAX_HELD:], (event.start, event.start + event.duration)]
            if any(start == event.start for start, _ in sounding):
                what = f"strikes {pitch_name(pitch)} ({pitch}) twice at {event.start / RESOLUTION:g} quarter notes"
            elif len(sounding) >= MAX_HELD:
                what = f"is one note too many on {pitch_name(pitch)} ({pitch}): {MAX_HELD} hold it already"
            else:
                continue
            violations.append(Violation(pointer(event.path), f"{quoted(event.path)} {what}"))
            if len(violations) == MAX_VIOLATIONS:
                return violations
    return violations
