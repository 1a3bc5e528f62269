"""The composer that somebody means: "chopin", "Fryderyk Chopin", "J. S. Bach" among the names that a model knows.

Names look like "Bach, Johann Sebastian": what stands before the comma is the family name; without a comma it is the whole.
Capitals, accents and the order of words do not matter.
"""

import re
from collections.abc import Iterable, Sequence
from difflib import SequenceMatcher

from service.errors import InvalidMusic
from service.music.names import fold

MAX_SUGGESTIONS = 3
_LIKENESS = 0.6  # from which on a name is suggested; difflib's own
_WORD = re.compile(r"[^\W_]+")


def find_composer(text: str, names: Sequence[str]) -> str:
    """Return the one of `names` that a text means.

    All words of the text must be in the name, one of the family name's among them; a given name may be an initial.

    Raises
    ------
    InvalidMusic
        If it fits no name, or several; the message has the names that come closest.
    """
    words = _words(text)
    whole = [name for name in names if sorted(_words(name)) == sorted(words)]
    found = whole or [name for name in names if _fits(words, name)]
    if len(found) == 1:
        return found[0]
    if found:
        raise InvalidMusic(f"several composers have that name: {_listed(found)}; /models has them all")
    near = _nearest(words, names)
    hint = f"did you mean {_listed(near)}? " if near else ""
    raise InvalidMusic(f"not a composer that the model knows; {hint}/models has them all")


def _words(text: str) -> list[str]:
    return _WORD.findall(fold(text))


def _family(name: str) -> list[str]:
    return _words(name.partition(",")[0])


def _fits(words: list[str], name: str) -> bool:
    family, given = _family(name), _words(name.partition(",")[2])
    return any(word in family for word in words) and all(
        word in family or word in given or (len(word) == 1 and any(g.startswith(word) for g in given)) for word in words
    )


def _nearest(words: list[str], names: Sequence[str]) -> list[str]:
    """Return the names most like the words, judged by the family name or by the whole, the best first."""

    def likeness(name: str) -> float:
        family = _family(name)
        pairs = [(word, part) for word in words for part in family] + [(" ".join(sorted(words)), " ".join(sorted(_words(name))))]
        return max((SequenceMatcher(None, *pair).ratio() for pair in pairs), default=0.0)

    ranked = sorted(((likeness(name), name) for name in names), key=lambda pair: -pair[0])
    return [name for score, name in ranked[:MAX_SUGGESTIONS] if score >= _LIKENESS]


def _listed(names: Iterable[str]) -> str:
    return " or ".join(f'"{name}"' for name in names)
