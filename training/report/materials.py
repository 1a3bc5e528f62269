"""What the parts of the report share: the data, the model, and the wishes that pieces are composed for."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from service.engine.model import OnnxModel
from training.conditions import UNKNOWN
from training.data import Dataset, load_dataset
from training.report.compose import Composed, Progress, Wish, compose, default_wish
from training.report.excerpts import Excerpt
from training.report.metre import metre_name

LENGTH = 200  # notes of a passage that is compared
# The random seeds of each series of pieces begin here, so that no piece of one is a piece of another.
SERIES = ("comparison", "long", "64 notes", f"{LENGTH} notes", "key", "metre", "tempo")
_SEEDS_PER_SERIES = 1_000_000


@dataclass(frozen=True)
class Materials:
    """The data and the model of a report.

    Attributes
    ----------
    model : Path
    metadata : mapping
        Of the model.
    train, valid : Dataset
    processes : int
        That compose side by side.
    progress : callable
    """

    model: Path
    metadata: Mapping[str, Any]
    train: Dataset
    valid: Dataset
    processes: int
    progress: Progress

    @classmethod
    def load(cls, model_path: Path, data_path: Path, processes: int, progress: Progress) -> "Materials":
        """Read both files.

        Raises
        ------
        ModelMismatch, InvalidDataset
            If one cannot be used.
        """
        metadata = OnnxModel(model_path).info.metadata
        dataset = load_dataset(data_path)
        return cls(model_path, metadata, dataset.select("train"), dataset.select("valid"), processes, progress)

    def wishes(self, series: str, count: int, length: int) -> list[Wish]:
        """Return wishes at the service's defaults, with the random seeds of a series (one of SERIES)."""
        first = SERIES.index(series) * _SEEDS_PER_SERIES
        return [default_wish(self.metadata, first + number, length) for number in range(count)]

    def wishes_like(self, series: str, count: int, length: int, excerpts: list[Excerpt]) -> list[Wish]:
        """Return wishes with the rendition and the metre of each excerpt in turn, otherwise at the defaults."""
        wishes = []
        for number, wish in enumerate(self.wishes(series, count, length)):
            excerpt = excerpts[number % len(excerpts)]
            rendition = self.valid.infos[excerpt.source].rendition
            conditions = {name: value for name, value in wish.conditions.items() if name != "rendition"}
            if rendition != UNKNOWN:
                conditions["rendition"] = rendition
            wishes.append(replace(wish, metre=metre_name(excerpt.piece), conditions=conditions))
        return wishes

    def compose(self, series: str, wishes: list[Wish]) -> list[Composed]:
        """Compose pieces, telling how far it is."""
        return compose(
            self.model, wishes, self.processes, lambda _, done, total: self.progress(f"composing: {series}", done, total)
        )
