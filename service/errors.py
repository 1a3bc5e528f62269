"""Every error that Nocturne raises on purpose.

NocturneError
├── InvalidMusic          a MIDI file or a list of notes that cannot be read as piano music
├── InvalidRequest        a request that the contract or the model refuses; carries one Violation per field
├── ModelMismatch         a model file that is not what this version of the service can run
├── UnknownClient         a request without an API key of this service, where one is needed
├── QuotaExceeded         a client that asked for more notes than it may, for now
├── EngineOverloaded      the queue of the engine is full: try again later
├── EngineFailed          the engine's process cannot be reached
└── GenerationTimeout     the deadline of a request passed before its last note
    └── WaitOver          that deadline was the client's own, shorter than the service's

Nothing here knows an HTTP status: `service.web.refusals` holds the one table from error to status.
"""

from collections.abc import Sequence
from typing import NamedTuple


class NocturneError(Exception):
    """Base of all errors raised on purpose."""


class InvalidMusic(NocturneError):
    """Music that cannot be read: broken bytes, no notes, or values outside the representation."""


class Violation(NamedTuple):
    """One thing wrong with a request: where (a JSON pointer, "" for the whole) and what."""

    pointer: str
    detail: str


class InvalidRequest(NocturneError):
    """A request that was understood and refused.

    Parameters
    ----------
    violations : sequence of Violation
        What is wrong, one entry a field; at least one.
    """

    def __init__(self, violations: Sequence[Violation]) -> None:
        super().__init__("; ".join(v.detail for v in violations))
        self.violations = tuple(violations)


class UnknownClient(NocturneError):
    """A request without an API key, or with one that is not among ours."""


class QuotaExceeded(NocturneError):
    """A client that asks for more than it may.

    Parameters
    ----------
    detail : str
    limit, left : int
        Notes that it may ask for in a minute, and those it may ask for now.
    retry_after_s : int
        Seconds after which the same request may be sent again; 60 if it never may.
    """

    def __init__(self, detail: str, limit: int, left: int, retry_after_s: int) -> None:
        super().__init__(detail)
        self.limit, self.left, self.retry_after_s = limit, left, retry_after_s


class ModelMismatch(NocturneError):
    """A model file whose metadata or graph does not fit this version of the service."""


class EngineOverloaded(NocturneError):
    """The waiting queue of the engine is full."""


class EngineFailed(NocturneError):
    """The engine's process ended or never became ready."""


class GenerationTimeout(NocturneError):
    """The deadline of a request passed before the piece was complete."""


class WaitOver(GenerationTimeout):
    """The client did not want to wait any longer (`Prefer: wait`)."""
