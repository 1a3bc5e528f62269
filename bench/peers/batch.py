"""What stands behind each of the peers: a whole batch of requests, from JSON to MIDI files, by our own model and music code.

Dynamic batching of whole requests means a static batch: it runs until its last piece is done, and what came meanwhile waits for
the next one. Rows whose pieces are done stay in it, composing for nobody; or they leave it between two chunks, which is more than
a batcher of whole requests does by itself, and takes our scheduler.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from service.config import ServiceConfig
from service.engine.model import OnnxModel
from service.engine.sampling import Composition, Sequence
from service.engine.scheduler import Scheduler
from service.music.midi_writer import write_midi
from service.web.compose import assemble, make_sequence
from service.web.contract import Contract
from service.web.player import Player
from service.web.requests import GenerateRequest

MAX_BATCH = ServiceConfig().slots
_CHUNK = ServiceConfig().chunk
_NEVER = float("inf")
_ENDLESS = 10**6  # notes


class Composer:
    """The model, and what turns requests into pieces and pieces into files.

    Parameters
    ----------
    model_path : Path
    rows_leave : bool
        Whether rows whose pieces are done leave the batch.
    """

    def __init__(self, model_path: Path, rows_leave: bool) -> None:
        self._model, self._rows_leave = OnnxModel(model_path), rows_leave
        self._contract = Contract.load()
        self._players = Player.by_name([self._model.info])

    def read(self, fields: Mapping[str, Any]) -> GenerateRequest:
        """Return what is asked for, checked as in our service."""
        return GenerateRequest.from_fields(self._contract.check("generate", dict(fields)), self._players)

    def compose(self, requests: list[GenerateRequest]) -> list[Composition]:
        """Compose a batch until all of it is done."""
        count = len(requests)
        scheduler = Scheduler(self._model, count, _CHUNK, count)
        for id, request in enumerate(requests):
            scheduler.add(id, make_sequence(request), _NEVER)
        composed: dict[int, Composition] = {}
        while len(composed) < count:
            for outcome in scheduler.step(0.0):
                assert isinstance(outcome.result, Composition)
                composed[outcome.id] = outcome.result
                if not self._rows_leave:  # a row that stays costs what one costs that composes
                    scheduler.add(count + outcome.id, Sequence(outcome.id, _ENDLESS), _NEVER)
        return [composed[id] for id in range(count)]

    def write(self, request: GenerateRequest, composition: Composition) -> bytes:
        """Return the MIDI file of a piece."""
        answer = assemble(request, composition, self._players[request.model])
        return write_midi(answer.piece, answer.end)
