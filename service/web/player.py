"""What the service must know of the model that plays: what it can be asked for, and what it is told if nothing is asked."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from service.engine.interface import ModelInfo
from service.errors import ModelMismatch
from service.music.piece import COMMON_TIME, TimeSignature
from service.music.representation import time_signature_index


@dataclass(frozen=True)
class Player:
    """A model as the web side sees it.

    Attributes
    ----------
    name : str
    metre : TimeSignature
        The one that it composes in unless asked for another.
    defaults : mapping of str to int
        Index of each condition that it is told unless asked for another.
    attribution : str
        Whose music it learned from; written into every file.
    conditions : mapping of str to tuple of str
        Names of the values of each condition that it knows, by index; the first one stands for "not told".
    """

    name: str
    metre: TimeSignature
    defaults: Mapping[str, int]
    attribution: str = ""
    conditions: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @classmethod
    def by_name(cls, models: Iterable[ModelInfo]) -> dict[str, "Player"]:
        """Return the models of an engine by name, in their order."""
        return {model.name: cls.from_metadata(model.name, model.metadata) for model in models}

    @classmethod
    def from_metadata(cls, name: str, metadata: Mapping[str, Any]) -> "Player":
        """Read a model's metadata. A default that its data did not have is left out, which means "not given".

        Raises
        ------
        ModelMismatch
            If the default metre is none.
        """
        asked = metadata.get("defaults", {})
        metre = parse_metre(asked.get("time_signature", f"{COMMON_TIME.numerator}/{COMMON_TIME.denominator}"))
        conditions = {condition: tuple(values) for condition, values in metadata.get("conditions", {}).items()}
        defaults = {"metre": time_signature_index(metre)}
        for condition, values in conditions.items():
            if condition in asked and asked[condition] in values:
                defaults[condition] = values.index(asked[condition])
        return cls(name, metre, defaults, str(metadata.get("attribution", "")), conditions)

    def values(self, condition: str) -> tuple[str, ...]:
        """Return the values of a condition that can be asked for: none where the model does not know it."""
        return self.conditions.get(condition, ())[1:]

    def abilities(self) -> dict[str, list[str] | list[float]]:
        """Return what can be asked for, as /models tells it."""
        tempos = [float(qpm) for qpm in self.values("tempo")]
        return {
            "styles": list(self.values("composer")),
            "renditions": list(self.values("rendition")),
            "keys": list(self.values("key")),
            "time_signatures": list(self.values("metre")),
            "tempo_range": [min(tempos), max(tempos)] if tempos else [],
        }


def parse_metre(text: str) -> TimeSignature:
    """Return a metre that holds from the beginning.

    Raises
    ------
    ModelMismatch
        If this is none. A request's metre is one of the contract's; only a model can name another.
    """
    numerator, _, denominator = str(text).partition("/")
    if not (numerator.isdecimal() and denominator.isdecimal() and int(numerator) and int(denominator)):
        raise ModelMismatch(f"the model's default `time_signature` must look like 4/4; it is {text!r}")
    return TimeSignature(0, int(numerator), int(denominator))
