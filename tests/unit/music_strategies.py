"""Random pieces for hypothesis, as wild as the representation allows."""

from itertools import pairwise

from hypothesis import strategies as st

from service.music.piece import (
    HIGHEST_PITCH,
    LOWEST_PITCH,
    NOTE,
    PEDAL,
    TEMPO,
    KeySignature,
    Piece,
    TimeSignature,
    records,
    sort_notes,
)

SHORTEST_WRITTEN_PICKUP = 3  # ticks: a 32nd; MIDI's metre has no name for anything between

_METRES = st.sampled_from([(4, 4), (3, 4), (2, 4), (6, 8), (3, 8), (2, 2), (5, 4), (7, 8), (12, 16), (8, 2)])
_MICROSECONDS = st.integers(125_000, 6_300_000)  # a quarter note at 480 to 9.5 per minute: the range of the tempo field
_TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")), max_size=12)


@st.composite
def pieces(draw: st.DrawFn, longest_rest: int = 500) -> Piece:
    """Notes in chords and with rests, overlapping or not, with pedal, tempo, metre, keys and pick-up."""
    steps = st.sampled_from([0, 0, 0, 1, 6, 8, 24]) | st.integers(0, longest_rest)
    note = st.tuples(
        steps,
        st.integers(LOWEST_PITCH, HIGHEST_PITCH) | st.sampled_from([60, 62]),
        st.integers(1, 400),
        st.integers(1, 127),
        st.integers(1, 3),
    )
    now = 0
    notes = {}
    for step, pitch, duration, velocity, hand in draw(st.lists(note, min_size=1, max_size=30)):
        now += step
        # One note for a key, hand and time: which of two is which cannot be told after their velocities are rounded.
        notes[now, pitch, hand] = (now, pitch, duration, velocity, hand)
    ticks = st.integers(0, now + 100)
    pedals = [(time, i % 2 == 0) for i, time in enumerate(sorted(draw(st.lists(ticks, max_size=8))))]
    tempos = [(time, 60e6 / us) for time, us in sorted(draw(st.dictionaries(ticks, _MICROSECONDS, max_size=6)).items())]
    keys = sorted(draw(st.dictionaries(ticks, st.tuples(st.integers(-7, 7), st.booleans()), max_size=3)).items())
    signatures, pickup = draw(metre_maps())
    return Piece(
        sort_notes(records(NOTE, notes.values())),
        records(TEMPO, _different(tempos)),
        records(PEDAL, pedals),
        signatures,
        tuple(KeySignature(time, *key) for time, key in _different(keys)),
        pickup,
        title=draw(_TEXTS),
        copyright=draw(_TEXTS),
    )


@st.composite
def metre_maps(draw: st.DrawFn) -> tuple[tuple[TimeSignature, ...], int]:
    """One to three metres that change at barlines, and the pick-up."""
    kinds = [metre for metre, _ in _different([(m, m) for m in draw(st.lists(_METRES, min_size=1, max_size=3))])]
    bar = TimeSignature(0, *kinds[0]).bar_ticks
    pickup = draw(st.just(0) | st.integers(1, bar // SHORTEST_WRITTEN_PICKUP - 1).map(lambda n: n * SHORTEST_WRITTEN_PICKUP))
    signatures = [TimeSignature(0, *kinds[0])]
    time = pickup
    for kind in kinds[1:]:
        # Two bars at least: one bar before a longer metre would be a pick-up to a reader.
        time += signatures[-1].bar_ticks * draw(st.integers(2, 4))
        signatures.append(TimeSignature(time, *kind))
    return tuple(signatures), pickup


def _different(events: list) -> list:
    """Drop what repeats the value before it."""
    return events[:1] + [b for a, b in pairwise(events) if a[1] != b[1]]
