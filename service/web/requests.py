"""What was asked for: the fields of a request that passed the contract, as one frozen record."""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from service.engine.sampling import SamplingParams
from service.errors import InvalidRequest, Violation
from service.music.piece import NOTE, Records, TimeSignature, records
from service.web.conditions import Conditions, read_conditions
from service.web.melody import parse_melody
from service.web.player import Player
from service.web.upload import Upload
from service.web.violations import shown

CHOSEN_SEED_BITS = 32  # of a random seed that nobody gave: short enough to be typed again
MAX_NOTES = 4096  # the limit of `length`, and of a piece that is asked for by its bars


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
        Notes to compose after them; with `bars`, at most.
    bars : int, optional
        The piece, the melody included, ends on the barline after so many bars.
    conditions : Conditions
    temperature, min_p : float
        As in `SamplingParams`.
    include_seed : bool
        Whether the answer begins with the melody.
    end : bool
        Whether the piece comes to its end, or stops after `length` notes.
    repeatable : bool
        Whether the client gave the random seed, so that the same request gives the same bytes.
    model : str
        Name of the model that composes.
    """

    random_seed: int
    melody: Records
    length: int
    bars: int | None
    conditions: Conditions
    temperature: float
    min_p: float
    include_seed: bool
    end: bool
    repeatable: bool
    model: str

    @classmethod
    def from_fields(
        cls, fields: Mapping[str, Any], players: Mapping[str, Player], upload: Upload | None = None
    ) -> "GenerateRequest":
        """Read the fields, defaults filled in, that the contract has let pass.

        Parameters
        ----------
        fields : mapping
            By name.
        players : mapping of str to Player
            The models by name; first the one for requests that name none.
        upload : Upload, optional
            The file that is the melody; then `seed` is the random seed.

        Raises
        ------
        InvalidRequest
            If fields contradict each other, the model is another or does not know what is asked, or the melody cannot be read.
        """
        player = players.get(fields.get("model", next(iter(players))))
        if player is None:
            detail = f"`model` must be one of {', '.join(map(shown, players))}; got {shown(fields['model'])}"
            raise InvalidRequest([Violation("/model", detail)])
        seed, random_seed = fields.get("seed"), fields.get("random_seed")
        melody = records(NOTE)
        if upload is not None:
            melody, fields = upload.melody, upload.fill_in(fields, player)
        if isinstance(seed, list):
            melody = parse_melody(seed)
        elif seed is not None:
            if random_seed is not None:
                detail = "`random_seed` goes with a melody; `seed` is an integer already: give one of them"
                raise InvalidRequest([Violation("/random_seed", detail)])
            random_seed = seed
        conditions = read_conditions(fields, player)
        bars = int(fields["bars"]) if "bars" in fields else None
        if bars is not None:
            _check_bars(bars, fields, melody, conditions.metre)
        return cls(
            random_seed=int(random_seed) if random_seed is not None else secrets.randbits(CHOSEN_SEED_BITS),
            melody=melody,
            length=int(fields["length"]) if bars is None else max(1, MAX_NOTES - len(melody)),
            bars=bars,
            conditions=conditions,
            temperature=float(fields["temperature"]),
            min_p=float(fields["min_p"]),
            include_seed=fields["include_seed"],
            end=fields["end"],
            repeatable=random_seed is not None,
            model=player.name,
        )

    @property
    def end_time(self) -> int | None:
        """Tick of the barline at which the piece ends; None where it ends with its length."""
        return None if self.bars is None else self.bars * self.conditions.metre.bar_ticks

    def params(self) -> SamplingParams:
        """Return how the notes are drawn."""
        return SamplingParams(temperature=self.temperature, min_p=self.min_p)


def _check_bars(bars: int, fields: Mapping[str, Any], melody: Records, metre: TimeSignature) -> None:
    """Raise InvalidRequest if something else says how long the piece is, or the melody leaves no room in its bars."""
    violations = []
    if "length" in fields:
        detail = "`length` and `bars` both say how long the piece is: give one of them"
        violations.append(Violation("/length", detail))
    if not fields["end"]:
        violations.append(Violation("/end", "`end` must be true with `bars`, which ask for an end at a barline; got false"))
    filled = int((melody["time"] + melody["duration"]).max(initial=0)) / metre.bar_ticks
    if filled >= bars:
        name = f"{metre.numerator}/{metre.denominator}"
        detail = f"`bars` must be more than {filled:.4g}, which the melody fills in {name}; got {bars}"
        violations.append(Violation("/bars", detail))
    if violations:
        raise InvalidRequest(violations)
