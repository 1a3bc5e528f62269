"""The tempo map of an answer: that of the melody, then what was composed, scaled to the tempo asked for. Pure functions."""

import numpy as np
from numpy.typing import NDArray

from service.music.piece import TEMPO, Records, records
from service.music.representation import TEMPOS

QPM = NDArray[np.float64]  # quarter notes per minute, one per note


def scale_tempos(qpm: QPM, asked: float) -> QPM:
    """Return tempos scaled by one factor, such that their median is what was asked for; what deviates from it, deviates still.

    They are kept within what the representation holds, which a MIDI file can always write.
    """
    if not len(qpm):
        return qpm
    return np.clip(asked * (qpm / np.median(qpm)), TEMPOS[1], TEMPOS[-1])


def tempo_map(times: NDArray[np.int64], qpm: QPM) -> Records:
    """Return the tempo map (dtype TEMPO) that a tempo at each note makes.

    Parameters
    ----------
    times : int array, shape (N,)
        In ticks, ascending.
    qpm : float array, shape (N,)

    Returns
    -------
    structured array of dtype TEMPO
        The tempo of the first note of each onset, where it differs from the one before. The first one holds from the beginning.
    """
    onsets = np.diff(times, prepend=-1) > 0
    times, qpm = times[onsets], qpm[onsets]
    changed = np.diff(qpm, prepend=0.0) != 0
    tempos = records(TEMPO, zip(times[changed].tolist(), qpm[changed].tolist(), strict=True))
    tempos["time"][:1] = 0
    return tempos
