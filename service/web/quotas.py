"""Who asks, and how much each may: API keys from a file, and notes a minute by token bucket.

Notes are what a request costs: those of its melody, which the model hears one by one, and those it composes. Where a piece is
asked for by its bars, how many notes it will have is not known before, and it is charged as `NOTES_PER_QUARTER` says.
The buckets are the only thing that is kept between requests, in memory, and no answer depends on them but a refusal.
"""

import hashlib
import hmac
import ipaddress
import math
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from throttled import Throttled
from throttled.rate_limiter import per_min
from throttled.store import MemoryStore

from service.config import MAX_NOTES_PER_MINUTE, InvalidSetting, ServiceConfig
from service.errors import QuotaExceeded, UnknownClient
from service.music.piece import RESOLUTION
from service.web.requests import GenerateRequest

MAX_CLIENTS = 100_000  # whose buckets are kept; of more, those not seen for longest begin anew
NOTES_PER_QUARTER = 4  # what a piece asked for by its bars is taken to have
_IPV6_NETWORK = 64  # bits of an address that one subscriber is given
_BEARER = re.compile(r"Bearer +([A-Za-z0-9._~+/-]+=*)", re.IGNORECASE)  # RFC 6750
_WITH_PORT = re.compile(r"\[([^]]+)\](?::\d+)?|([\d.]+):\d+")  # as URLs have them
_FIELDS = {"name": str, "sha256": str, "notes_per_minute": int}


@dataclass(frozen=True)
class Client:
    """Who asks.

    Attributes
    ----------
    name : str
        Of its key, or its address.
    notes_per_minute : int
        What it may ask for; 0 sets no limit.
    """

    name: str
    notes_per_minute: int


@dataclass(frozen=True)
class _Key:
    sha256: bytes
    client: Client


def hash_key(key: str) -> str:
    """Return what the file holds of a key. A plain hash will do: keys are random, 256 bits of them, and cannot be guessed."""
    return hashlib.sha256(key.encode()).hexdigest()


class Quotas:
    """The clients of a service.

    Parameters
    ----------
    config : ServiceConfig

    Raises
    ------
    InvalidSetting
        If the file of keys cannot be read; the message names the entry and the field.
    """

    def __init__(self, config: ServiceConfig) -> None:
        self._default = config.notes_per_minute
        self._keys = None if config.api_keys_file is None else _read_keys(config.api_keys_file, config.notes_per_minute)
        self._store = MemoryStore(options={"MAX_SIZE": MAX_CLIENTS})
        self._buckets: dict[int, Throttled] = {}  # by notes a minute

    @property
    def need_keys(self) -> bool:
        """Whether only clients with a key may compose."""
        return self._keys is not None

    def identify(self, authorization: str | None, address: str | None) -> Client:
        """Return who asks.

        Parameters
        ----------
        authorization : str, optional
            Header of the request.
        address : str, optional
            Of the client.

        Raises
        ------
        UnknownClient
            If a key is needed and none of ours was sent.
        """
        if self._keys is None:
            return Client(_network(address or "?"), self._default)
        match = _BEARER.fullmatch(authorization or "")
        if match is None:
            raise UnknownClient("`Authorization` must be `Bearer` and an API key")
        digest = bytes.fromhex(hash_key(match[1]))
        # All of them, and each in the same time, whichever fits.
        fitting = [key.client for key in self._keys if hmac.compare_digest(key.sha256, digest)]
        if not fitting:
            raise UnknownClient("`Authorization` holds no API key of this service")
        return fitting[0]

    def check(self, client: Client, notes: int) -> None:
        """Raise QuotaExceeded if a client may not ask for so many notes now; nothing is charged."""
        bucket = self._bucket(client)
        if bucket is None:
            return
        left = bucket.peek(client.name).remaining
        if notes > client.notes_per_minute:
            detail = (
                f"the piece costs {notes} notes, more than the {client.notes_per_minute} a minute that are allowed; ask for fewer"
            )
            raise QuotaExceeded(detail, client.notes_per_minute, left, 60)
        if notes > left:
            wait = math.ceil((notes - left) * 60 / client.notes_per_minute)
            detail = (
                f"the piece costs {notes} notes, and {left} of {client.notes_per_minute} a minute are left; try again in {wait} s"
            )
            raise QuotaExceeded(detail, client.notes_per_minute, left, wait)

    def charge(self, client: Client, notes: int) -> None:
        """Take notes from a client's bucket; what two requests at once took too much is forgiven."""
        bucket = self._bucket(client)
        if bucket is not None:
            bucket.limit(client.name, cost=notes)

    def _bucket(self, client: Client) -> Throttled | None:
        limit = client.notes_per_minute
        if limit and limit not in self._buckets:
            # The generic cell rate algorithm: a token bucket that keeps one number, the time at which it is full again.
            self._buckets[limit] = Throttled(using="gcra", quota=per_min(limit, burst=limit), store=self._store)
        return self._buckets.get(limit)


def cost_of(request: GenerateRequest) -> int:
    """Return the notes that a request is charged."""
    if request.end_time is None:
        return len(request.melody) + request.length
    return len(request.melody) + min(request.length, NOTES_PER_QUARTER * request.end_time // RESOLUTION)


def _network(address: str) -> str:
    """Return the address, of IPv6 the network of one subscriber: with one of its addresses used up another is at hand.

    A port, which some proxies add, is left out, and an address of IPv4 in the form of IPv6 is that address.
    """
    match = _WITH_PORT.fullmatch(address)
    try:
        found = ipaddress.ip_address(match[1] or match[2] if match else address)
    except ValueError:
        return address
    if isinstance(found, ipaddress.IPv6Address):
        found = found.ipv4_mapped or found
    if found.version == 4:
        return str(found)
    return str(ipaddress.ip_network((found, _IPV6_NETWORK), strict=False))


def _read_keys(path: Path, default: int) -> list[_Key]:
    where = f"`NOCTURNE_API_KEYS_FILE` ({path})"
    try:
        entries = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidSetting(f"{where} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise InvalidSetting(f"{where} must be TOML in UTF-8: {error}") from None
    keys = entries.get("keys")
    if set(entries) != {"keys"} or not isinstance(keys, list):
        has = ", ".join(entries) or "nothing"
        raise InvalidSetting(f"{where} must hold [[keys]] and nothing else, or `keys = []` to let nobody in; it has {has}")
    read = [_read_key(entry, f"{where}, key {number}", default) for number, entry in enumerate(keys, 1)]
    for number, key in enumerate(read):
        if any(key.sha256 == other.sha256 or key.client.name == other.client.name for other in read[:number]):
            raise InvalidSetting(f"{where}, key {number + 1}: `name` and `sha256` must not be those of another key")
    return read


def _read_key(entry: Any, where: str, default: int) -> _Key:
    if not isinstance(entry, Mapping) or set(entry) - set(_FIELDS):
        raise InvalidSetting(f"{where} must have `name`, `sha256` and perhaps `notes_per_minute`, nothing else")
    for name, kind in _FIELDS.items():
        if name in entry and type(entry[name]) is not kind:
            raise InvalidSetting(f"{where}: `{name}` must be {'a whole number' if kind is int else 'a string'}")
    if not re.fullmatch(r"[^\x00-\x1f\x7f]{1,100}", entry.get("name", "")):
        raise InvalidSetting(f"{where}: `name` must be 1 to 100 characters")
    if not re.fullmatch(r"[0-9a-f]{64}", entry.get("sha256", "")):
        raise InvalidSetting(f"{where}: `sha256` must be 64 hexadecimal digits, as `python -m service.keys` writes them")
    notes = entry.get("notes_per_minute", default)
    if not 0 <= notes <= MAX_NOTES_PER_MINUTE:
        raise InvalidSetting(f"{where}: `notes_per_minute` must be in [0, {MAX_NOTES_PER_MINUTE}]; got {notes}")
    return _Key(bytes.fromhex(entry["sha256"]), Client(entry["name"], notes))
