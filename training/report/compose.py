"""Composing with an exported model the way the service does: its scheduler, 32 rows, its default settings.

What a piece is asked to be is a `Wish`, in the names of the model's own metadata. What a model does not know it is not asked:
`unknown_wishes` says what that is, so that the report can.
"""

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

from service.engine.model import OnnxModel
from service.engine.sampling import Composition, SamplingParams, Sequence
from service.engine.scheduler import Scheduler
from service.errors import EngineFailed
from service.music.piece import Piece
from service.music.playable import make_playable
from service.music.representation import decode_tokens, time_signature_index
from service.music.tempos import scale_tempos, tempo_map
from training.report.ending import chances_of_an_end
from training.report.excerpts import parse_metre

ROWS = 32  # as NOCTURNE_SLOTS
CHUNK = 16  # as NOCTURNE_CHUNK; neither changes a note
Progress = Callable[[str, int, int], None]  # what is being done, how much of it, of how much


@dataclass(frozen=True)
class Wish:
    """A piece to compose.

    Attributes
    ----------
    random_seed : int
    length : int
        Notes.
    metre : str
        Such as "3/4"; one of TIME_SIGNATURES.
    conditions : mapping of str to str
        The value of each condition, in the names of the model's metadata.
    params : SamplingParams
        The service's defaults if left out.
    tempo : float, optional
        The median tempo asked for, in quarter notes per minute, beside the condition of that name.
    tell_length : bool
        Whether the model is told how many notes there will be, as a request's `end` has it by default.
    """

    random_seed: int
    length: int
    metre: str = "4/4"
    conditions: Mapping[str, str] = field(default_factory=dict)
    params: SamplingParams = field(default_factory=SamplingParams)
    tell_length: bool = True
    tempo: float | None = None


class Composed(NamedTuple):
    """A composed piece, and how likely the model itself finds it that the piece is over after its last note, 0..1."""

    piece: Piece
    chance_of_end: float


def default_wish(metadata: Mapping[str, Any], random_seed: int, length: int) -> Wish:
    """Return what a request asks that says nothing but a seed and a length (as service.web.compose.Player has it)."""
    defaults = dict(metadata.get("defaults", {}))
    metre = defaults.pop("time_signature", "4/4")
    return Wish(random_seed, length, metre, {name: value for name, value in defaults.items() if name in metadata["conditions"]})


def unknown_wishes(wishes: Iterable[Wish], metadata: Mapping[str, Any]) -> list[str]:
    """Return which conditions and values of the wishes the model does not know, as "name" or "name=value"."""
    known, missing = metadata["conditions"], set()
    for wish in wishes:
        for name, value in wish.conditions.items():
            if name not in known:
                missing.add(name)
            elif value not in known[name]:
                missing.add(f"{name}={value}")
    return sorted(missing)


def make_sequence(wish: Wish, metadata: Mapping[str, Any]) -> Sequence:
    """Return what the engine has to compose; what the model does not know is left out."""
    metre, known = parse_metre(wish.metre), metadata["conditions"]
    conditions = {"metre": time_signature_index(metre)}
    for name, value in wish.conditions.items():
        if value in known.get(name, ()):
            conditions[name] = list(known[name]).index(value)
    return Sequence(
        wish.random_seed,
        wish.length,
        params=wish.params,
        conditions=conditions,
        bar_ticks=metre.bar_ticks,
        tell_length=wish.tell_length,
    )


def to_piece(composition: Composition, wish: Wish) -> Piece:
    """Return the piece as the service would answer it: its keys let go in time, at the tempo asked for, from its first bar on."""
    metre = parse_metre(wish.metre)
    piece = decode_tokens(composition.tokens, (metre,))
    if not len(piece.notes):
        return piece
    notes = make_playable(piece.notes)
    qpm = piece.tempo_at(notes["time"])
    if wish.tempo is not None:
        qpm = scale_tempos(qpm, wish.tempo)
    notes["time"] -= int(notes["time"][0]) // metre.bar_ticks * metre.bar_ticks
    return replace(piece, notes=notes, tempos=tempo_map(notes["time"], qpm))


def compose_with(model: OnnxModel, wishes: list[Wish]) -> list[Composed]:
    """Compose pieces side by side with a model that is loaded.

    Raises
    ------
    EngineFailed
        If a sequence ends without a composition, which without deadlines only a bug can bring about.
    """
    scheduler = Scheduler(model, ROWS, CHUNK, len(wishes))
    sequences = [make_sequence(wish, model.info.metadata) for wish in wishes]
    for number, sequence in enumerate(sequences):
        scheduler.add(number, sequence, float("inf"))
    results: dict[int, Composition] = {}
    while scheduler.running or scheduler.waiting:
        for number, result, _ in scheduler.step(0.0):
            if not isinstance(result, Composition):
                raise EngineFailed(f"piece {number} was not composed: {result}")
            results[number] = result
    compositions = [results[number] for number in range(len(wishes))]
    chances = chances_of_an_end(model, sequences, [composition.tokens for composition in compositions], ROWS)
    pieces = [to_piece(composition, wish) for composition, wish in zip(compositions, wishes, strict=True)]
    return [Composed(piece, chance) for piece, chance in zip(pieces, chances, strict=True)]


_model: OnnxModel | None = None  # of a worker process: loaded once in it, used for all its batches


def _load(path: Path) -> None:
    global _model
    _model = OnnxModel(path)


def _compose_batch(wishes: list[Wish]) -> list[Composed]:
    assert _model is not None
    return compose_with(_model, wishes)


def compose(path: Path, wishes: list[Wish], processes: int = 1, progress: Progress | None = None) -> list[Composed]:
    """Compose pieces; the same ones whatever the number of processes.

    Parameters
    ----------
    path : Path
        The exported model.
    wishes : list of Wish
    processes : int
        In so many processes, each with a model of its own.
    progress : callable, optional
        Called after each batch.

    Returns
    -------
    list of Composed
        In the order of the wishes.
    """
    size = 4 * ROWS  # rows that end early are filled again within a batch
    batches = [wishes[i : i + size] for i in range(0, len(wishes), size)]
    composed: list[Composed] = []

    def collect(results: Iterable[list[Composed]]) -> None:
        for result in results:
            composed.extend(result)
            if progress:
                progress("composing", len(composed), len(wishes))

    if processes <= 1:
        model = OnnxModel(path)
        collect(compose_with(model, batch) for batch in batches)
    else:
        # spawned: an onnxruntime session does not survive a fork
        with ProcessPoolExecutor(processes, get_context("spawn"), _load, (path,)) as pool:
            collect(pool.map(_compose_batch, batches))
    return composed
