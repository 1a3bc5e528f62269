"""Pieces composed by a model, without the process around it."""

from service.engine.sampling import Sequence
from service.engine.scheduler import ChunkModel, Scheduler
from service.music.representation import TokenArray


def compose_all(model: ChunkModel, sequences: list[Sequence], slots: int, chunk: int) -> list[TokenArray]:
    """Return the tokens of each sequence, composed by one scheduler, in their order."""
    scheduler = Scheduler(model, slots, chunk, len(sequences))
    for id, sequence in enumerate(sequences):
        scheduler.add(id, sequence, float("inf"))
    results = {}
    while scheduler.running or scheduler.waiting:
        results |= {outcome.id: outcome.result.tokens for outcome in scheduler.step(0.0)}
    return [results[id] for id in range(len(sequences))]
