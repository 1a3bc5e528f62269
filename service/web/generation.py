"""A request for music on its way to an answer: who asks, for what, whether the answer is known, composing it, and writing it."""

import time
from collections.abc import Mapping
from typing import Any, NamedTuple

from flask import Response, request

from service.config import ServiceConfig
from service.engine.process import Engine
from service.engine.sampling import Composition
from service.errors import GenerationTimeout, WaitOver
from service.web.access import ASKED, CLIENT, PARTS
from service.web.answers import VARY, cache_for, entity_tag, negotiate, not_modified, respond
from service.web.body import read_json, read_midi_file
from service.web.compose import assemble, make_sequence
from service.web.contract import Contract, parse_query
from service.web.metrics import Metrics
from service.web.player import Player
from service.web.preferences import APPLIED, PREFER, wait_preference
from service.web.quotas import Client, Quotas, cost_of
from service.web.requests import GenerateRequest
from service.web.upload import Upload, read_upload
from service.web.waiting import ClientWatcher, wait_for


class Caching(NamedTuple):
    """What an answer says of itself to caches; it has a tag if the same request always has the same answer."""

    tag: str | None
    control: str

    def headers(self) -> dict[str, str]:
        """Return the headers that say it."""
        return {"Cache-Control": self.control, **({"ETag": self.tag} if self.tag is not None else {})}


class Generation:
    """The operations `generate` and `generateByQuery`.

    Parameters
    ----------
    config : ServiceConfig
    contract : Contract
    engine : Engine
    players : mapping of str to Player
        Of each of the engine's models.
    metrics : Metrics
    quotas : Quotas
    """

    def __init__(
        self,
        config: ServiceConfig,
        contract: Contract,
        engine: Engine,
        players: Mapping[str, Player],
        metrics: Metrics,
        quotas: Quotas,
    ) -> None:
        self._config, self._contract, self._engine, self._players = config, contract, engine, players
        self._metrics, self._quotas, self._watcher = metrics, quotas, ClientWatcher(engine.cancel)
        self._hashes = {model.name: model.sha256 for model in engine.models}
        self._version = contract.document["info"]["version"]

    def by_body(self) -> Response:
        """Answer a request whose fields are JSON, or stand in the query beside a melody that is a MIDI file."""
        started, client = time.monotonic(), self._identify()
        media_type = negotiate(request)
        file = read_midi_file(request, self._config.max_body_bytes)
        given = read_json(request, self._config.max_body_bytes) if file is None else _query()
        upload = read_upload(file) if file is not None else None
        return self._answer("generate", given, upload, media_type, client, started)

    def by_query(self) -> Response:
        """Answer a request whose fields stand in the query."""
        started, client = time.monotonic(), self._identify()
        return self._answer("generateByQuery", _query(), None, negotiate(request), client, started)

    def _identify(self) -> Client:
        client = self._quotas.identify(request.headers.get("Authorization"), request.remote_addr)
        if self._quotas.need_keys:
            request.environ[CLIENT] = client.name
        return client

    def _answer(
        self, operation: str, given: Any, upload: Upload | None, media_type: str, client: Client, started: float
    ) -> Response:
        fields = self._contract.check(operation, given)
        request.environ[ASKED] = {name: value for name, value in fields.items() if not isinstance(value, list)}
        asked = GenerateRequest.from_fields(fields, self._players, upload)
        caching = self._caching(fields, asked, media_type)
        if caching.tag is not None and not_modified(request, caching.tag):
            return Response(status=304, headers={**caching.headers(), "Vary": VARY})
        wait_s = wait_preference(request.headers.get(PREFER), self._config.deadline_s)
        read = time.monotonic()
        composition = self._compose(asked, client, started, wait_s)
        composed = time.monotonic()
        response = respond(assemble(asked, composition, self._players[asked.model]), media_type)
        response.headers.update(caching.headers())
        if wait_s is not None:
            response.headers[APPLIED] = f"wait={wait_s}"
        now = time.monotonic()
        parts = {"read": read - started, "queue": composition.queue_s, "compose": composition.compose_s}
        request.environ[PARTS] = parts | {"write": now - composed, "total": now - started}
        self._metrics.time(composition, now - started)
        return response

    def _caching(self, fields: Mapping[str, Any], asked: GenerateRequest, media_type: str) -> Caching:
        kept = asked.repeatable and request.method != "POST"
        tag = entity_tag(fields, media_type, self._hashes[asked.model], self._version) if kept else None
        return Caching(tag, cache_for(kept, "model" in fields, self._quotas.need_keys))

    def _compose(self, asked: GenerateRequest, client: Client, started: float, wait_s: int | None) -> Composition:
        limit_s = wait_s or self._config.deadline_s
        cost, deadline = cost_of(asked), started + limit_s
        self._quotas.check(client, cost)
        future = self._engine.submit(make_sequence(asked), deadline)
        self._quotas.charge(client, cost)  # only now: what the queue refuses costs nothing
        try:
            return wait_for(self._engine, future, deadline, request.environ.get("gunicorn.socket"), self._watcher)
        except GenerationTimeout:
            detail = f"the piece was not complete within {limit_s} seconds; ask for fewer notes or try again later"
            raise (GenerationTimeout if limit_s == self._config.deadline_s else WaitOver)(detail) from None


def _query() -> dict[str, Any]:
    return parse_query(request.args.items(multi=True))
