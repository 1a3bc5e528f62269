"""What two hands can do with what was composed: keys are let go before they are struck again, and no eleventh is held down.

The model's graph keeps MAX_REPEATS and MAX_STRETCH itself, while it composes.
"""

import numpy as np

from service.music.piece import Records

MAX_STRUCK = 4  # notes on one key at one onset; with those that a melody may hold, MIDI has a channel for each
MAX_KEYS = 10  # held down at a time: a pianist has as many fingers
MAX_REPEATS = 8  # notes of one pitch in a row; more are what a broken record plays
MAX_STRETCH = 24  # semitones that one hand strikes at one onset


def make_playable(notes: Records) -> Records:
    """Return composed notes as a pianist could hold them: `release_keys`, then `lift_fingers`."""
    return lift_fingers(release_keys(notes))


def release_keys(notes: Records) -> Records:
    """Return notes such that a key that is struck while it sounds is let go first.

    Parameters
    ----------
    notes : structured array of dtype NOTE
        In canonical order. Not modified.

    Returns
    -------
    structured array of dtype NOTE
        Durations are shortened. Of more than MAX_STRUCK notes on one key at one onset the rest is left out, since a file could
        not hold them; only a broken model writes that.
    """
    notes = notes.copy()
    keep = np.ones(len(notes), np.bool_)
    sounding: dict[int, list[int]] = {}  # by pitch: the notes of its latest onset
    times = notes["time"].tolist()
    for i, pitch in enumerate(notes["pitch"].tolist()):
        struck = sounding.get(pitch, [])
        if struck and times[struck[0]] < times[i]:
            notes["duration"][struck] = np.minimum(notes["duration"][struck], times[i] - times[struck[0]])
            struck = []
        if len(struck) >= MAX_STRUCK:
            keep[i] = False
        else:
            sounding[pitch] = [*struck, i]
    return notes[keep]


def lift_fingers(notes: Records) -> Records:
    """Return notes such that at no onset more than MAX_KEYS are held: those held longest are let go there.

    Parameters
    ----------
    notes : structured array of dtype NOTE
        In canonical order. Not modified.

    Returns
    -------
    structured array of dtype NOTE
        Durations are shortened. More than MAX_KEYS struck at one onset stay as they are: which to leave out is not ours to say.
    """
    notes = notes.copy()
    held: list[tuple[int, int]] = []  # (onset, index) of what is down, in order
    times, ends = notes["time"].tolist(), (notes["time"] + notes["duration"]).tolist()
    for i, now in enumerate(times):
        held = [(onset, j) for onset, j in held if ends[j] > now]
        held.append((now, i))
        while len(held) > MAX_KEYS and held[0][0] < now:
            onset, j = held.pop(0)
            ends[j] = now
            notes["duration"][j] = now - onset
    return notes
