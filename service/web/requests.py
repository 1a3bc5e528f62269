"""What was asked for: the fields of a request that passed the contract, as one frozen record."""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from service.engine.sampling import SamplingParams
from service.errors import InvalidRequest, Violation
from service.music.piece import NOTE, Records, records
from service.web.melody import parse_melody
from service.web.violations import shown

CHOSEN_SEED_BITS = 32  # of a random seed that nobody gave: short enough to be typed again


@dataclass(frozen=True, eq=False)
class GenerateRequest:
    """A piece to compose.

    Attributes
    ----------
    random_seed : int
        0..2**53 - 1.
    melody : structured array of dtype NOTE
        The notes to continue, in canonical order; may be empty.
    length : int
        Notes to compose after them.
    temperature, min_p : float
        As in `SamplingParams`.
    include_seed : bool
        Whether the answer begins with the melody.
    end : bool
        Whether the piece may end before `length`.
    repeatable : bool
        Whether the client gave the random seed, so that the same request gives the same bytes.
    """

    random_seed: int
    melody: Records
    length: int
    temperature: float
    min_p: float
    include_seed: bool
    end: bool
    repeatable: bool

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any], model: str) -> "GenerateRequest":
        """Read the fields, defaults filled in, that the contract has let pass.

        Parameters
        ----------
        fields : mapping
            By name.
        model : str
            Name of the only model there is.

        Raises
        ------
        InvalidRequest
            If two fields give a random seed, the model is another one, or the melody cannot be read.
        """
        if fields.get("model", model) != model:
            detail = f"`model` must be one of {shown(model)}; got {shown(fields['model'])}"
            raise InvalidRequest([Violation("/model", detail)])
        seed, random_seed = fields.get("seed"), fields.get("random_seed")
        melody = records(NOTE)
        if isinstance(seed, list):
            melody = parse_melody(seed)
        elif seed is not None:
            if random_seed is not None:
                detail = "`random_seed` goes with a melody; `seed` is an integer already: give one of them"
                raise InvalidRequest([Violation("/random_seed", detail)])
            random_seed = seed
        return cls(
            random_seed=int(random_seed) if random_seed is not None else secrets.randbits(CHOSEN_SEED_BITS),
            melody=melody,
            length=int(fields["length"]),
            temperature=float(fields["temperature"]),
            min_p=float(fields["min_p"]),
            include_seed=fields["include_seed"],
            end=fields["end"],
            repeatable=random_seed is not None,
        )

    def params(self) -> SamplingParams:
        """Return how the notes are drawn."""
        return SamplingParams(temperature=self.temperature, min_p=self.min_p, allow_end=self.end)
