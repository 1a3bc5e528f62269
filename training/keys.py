"""The key of a passage, found the way of Krumhansl and Kessler: the profile of the 24 keys that its pitch classes fit best.

Profiles: C. L. Krumhansl, Cognitive Foundations of Musical Pitch (1990), table 2.1; the algorithm is that of its chapter 4
(Krumhansl and Schmuckler). Keys are numbered as in `service.music.keys`: 0..11 are C major to B major, 12..23 C minor to B minor.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.music.piece import Records

MAJOR_PROFILE = (6.35, 2.23, 3.48, 2.33, 4.38, 4.09, 2.52, 5.19, 2.39, 3.66, 2.29, 2.88)
MINOR_PROFILE = (6.33, 2.68, 3.52, 5.38, 2.60, 3.53, 2.54, 4.75, 3.98, 2.69, 3.34, 3.17)


class KeyEstimate(NamedTuple):
    """A key and how clear it is."""

    key: int  # 0..23
    clarity: float  # -1..1, the correlation with the key's profile


def _standardised(profile: NDArray[np.float64]) -> NDArray[np.float64]:
    centred = profile - profile.mean(axis=-1, keepdims=True)
    norm = np.linalg.norm(centred, axis=-1, keepdims=True)
    scaled: NDArray[np.float64] = np.divide(centred, norm, out=np.zeros_like(centred), where=norm > 0)
    return scaled


PROFILES = np.array([np.roll(profile, tonic) for profile in (MAJOR_PROFILE, MINOR_PROFILE) for tonic in range(12)])  # (24, 12)
_KEYS = _standardised(PROFILES)


def estimate_key(notes: Records) -> KeyEstimate:
    """Return the key that notes fit best, each pitch class weighing as long as it sounds.

    Parameters
    ----------
    notes : structured array of dtype NOTE, shape (N,)

    Returns
    -------
    KeyEstimate
        C major with clarity 0 if there are no notes, or all pitch classes sound equally long.
    """
    weights = np.zeros(12)
    np.add.at(weights, notes["pitch"] % 12, notes["duration"])
    correlations: NDArray[np.float64] = np.dot(_KEYS, _standardised(weights))
    best = int(correlations.argmax())
    return KeyEstimate(best, float(correlations[best]))
