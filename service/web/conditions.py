"""What a request asks the piece to be: style, rendition, key, metre, tempo, as the indices by which the model knows them."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from service.errors import InvalidMusic, InvalidRequest, Violation
from service.music.keys import KEY_NAMES, Key, parse_key
from service.music.piece import TimeSignature
from service.web.player import Player, parse_metre
from service.web.styles import find_composer
from service.web.violations import pointer, quoted, shown


@dataclass(frozen=True)
class Conditions:
    """What holds for a whole piece.

    Attributes
    ----------
    indices : mapping of str to int
        Of each condition that the model is told.
    metre : TimeSignature
    key : Key, optional
        The one that was asked for, as it was spelled.
    tempo : float, optional
        The one that was asked for, in quarter notes per minute.
    """

    indices: Mapping[str, int]
    metre: TimeSignature
    key: Key | None = None
    tempo: float | None = None


def read_conditions(fields: Mapping[str, Any], player: Player) -> Conditions:
    """Read the fields of a request that ask for something that the model was told of the music it learned from.

    Parameters
    ----------
    fields : mapping
        By name; the contract has let them pass.
    player : Player

    Raises
    ------
    InvalidRequest
        If the model does not know a condition, or the value of one.
    """
    indices = dict(player.defaults)
    violations = []
    for field, (condition, plural, find) in _ASKED.items():
        if field not in fields:
            continue
        names, value = player.values(condition), fields[field]
        try:
            if not names:
                raise InvalidMusic(f"the model {player.name} knows no {plural}; /models has what can be asked of it")
            indices[condition] = player.conditions[condition].index(find(value, names), 1)
        except InvalidMusic as error:
            violations.append(Violation(pointer([field]), f"{quoted([field])} is {shown(value)}: {error}"))
    if violations:
        raise InvalidRequest(violations)
    return Conditions(
        indices,
        metre=parse_metre(fields["time_signature"]) if "time_signature" in fields else player.metre,
        key=parse_key(fields["key"]) if "key" in fields else None,
        tempo=float(fields["tempo"]) if "tempo" in fields else None,
    )


def nearest_tempo(qpm: float, names: Sequence[str]) -> str:
    """Return the name, a number of quarter notes per minute, that is nearest to a tempo by ratio."""
    return min(names, key=lambda name: abs(math.log(float(name) / qpm)))


def _find_name(value: str, names: Sequence[str]) -> str:
    if value not in names:
        raise InvalidMusic("the model knows only " + ", ".join(map(shown, names)))
    return value


def _find_key(value: str, names: Sequence[str]) -> str:
    return _find_name(KEY_NAMES[parse_key(value).number], names)


# By field of a request: the model's name of the condition, what its values are called, and how one of them is found.
_ASKED: Mapping[str, tuple[str, str, Callable[[Any, Sequence[str]], str]]] = {
    "style": ("composer", "styles", find_composer),
    "rendition": ("rendition", "renditions", _find_name),
    "key": ("key", "keys", _find_key),
    "time_signature": ("metre", "time signatures", _find_name),
    "tempo": ("tempo", "tempos", nearest_tempo),
}
