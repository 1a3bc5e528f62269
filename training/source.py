"""A piece that is still to be read: where it comes from, and what is known of it beforehand."""

from collections.abc import Callable
from dataclasses import dataclass

from service.music.piece import Piece
from training.conditions import UNKNOWN


@dataclass(frozen=True)
class Source:
    """One piece to read: where it is and what is known of it beforehand."""

    name: str
    read: Callable[[], Piece]
    split: str | None = None
    composer: str = UNKNOWN
    pack: str = ""
    licence: str = ""
    attribution: str = ""
