"""openapi.yaml as data: its operations, and for each one that takes fields a compiled validator and the defaults.

The document is the only source of limits, types and defaults. Nothing here knows Flask.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import orjson
import yaml
from jsonschema_rs import Draft202012Validator

from service.errors import InvalidRequest, Violation
from service.web.violations import MAX_VIOLATIONS, Schema, explain, pointer, quoted, resolve

DOCUMENT = Path(__file__).resolve().parents[2] / "openapi.yaml"
METHODS = ("get", "put", "post", "delete", "patch")


class ContractMismatch(Exception):
    """openapi.yaml and the code do not fit together. Only a programmer can cause it, and it fails the start."""


@dataclass(frozen=True)
class Operation:
    """One operation of the document.

    Attributes
    ----------
    name : str
        Its operationId.
    method, path : str
        "POST", "/generate".
    schema : Schema
        What its fields must be, an object schema with all that it refers to; empty if it takes none.
    defaults : mapping of str to Any
        Values of the fields that a request leaves out.
    unless : mapping of str to str
        Fields whose default does not hold in a request with another field, and which (`x-default-unless`).
    """

    name: str
    method: str
    path: str
    schema: Schema
    defaults: Mapping[str, Any]
    unless: Mapping[str, str]


class Contract:
    """The operations of a document, by name.

    Parameters
    ----------
    text : str
        The document, YAML.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self.document: Schema = yaml.safe_load(text)
        found = [
            _operation(path, method, item[method], self.document)
            for path, item in self.document["paths"].items()
            for method in METHODS
            if method in item
        ]
        self.operations = {operation.name: operation for operation in found}
        if len(self.operations) < len(found):
            raise ContractMismatch("two operations of openapi.yaml have one operationId")
        self._validators = {o.name: Draft202012Validator(dict(o.schema)) for o in found if o.schema}

    @classmethod
    def load(cls, path: Path = DOCUMENT) -> "Contract":
        """Read the document from a file."""
        return cls(path.read_text(encoding="utf-8"))

    def check_handlers(self, handlers: Mapping[str, Callable[..., Any]]) -> None:
        """Check that there is a handler for each operation and an operation for each handler.

        Raises
        ------
        ContractMismatch
            If not; the message names what is missing.
        """
        for name in sorted(self.operations.keys() ^ handlers.keys()):
            lacks = "handler" if name in self.operations else "operation in openapi.yaml"
            raise ContractMismatch(f"`{name}` has no {lacks}")

    def check(self, name: str, fields: Any) -> dict[str, Any]:
        """Check the fields of a request and fill in the defaults.

        Parameters
        ----------
        name : str
            Of the operation.
        fields : Any
            The parsed JSON body, or `parse_query` of the query.

        Raises
        ------
        InvalidRequest
            If the schema refuses them.
        """
        operation, validator = self.operations[name], self._validators[name]
        if not validator.is_valid(fields):
            found = list(islice(explain(fields, operation.schema, operation.schema), MAX_VIOLATIONS))
            raise InvalidRequest(found or [Violation("", "the request does not follow openapi.yaml")])
        defaults = {name: value for name, value in operation.defaults.items() if operation.unless.get(name) not in fields}
        return {**defaults, **fields}


def parse_query(pairs: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """Turn query parameters into fields: what reads as a JSON number or true or false is that, anything else a string.

    Raises
    ------
    InvalidRequest
        If a parameter is given twice.
    """
    fields: dict[str, Any] = {}
    for name, text in pairs:
        if name in fields:
            raise InvalidRequest([Violation(pointer([name]), f"{quoted([name])} must be given once")])
        fields[name] = _parse_scalar(text)
    return fields


def _parse_scalar(text: str) -> Any:
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        return text
    return value if isinstance(value, bool | int | float) else text


def _operation(path: str, method: str, item: Schema, document: Schema) -> Operation:
    schema: dict[str, Any] = {}
    if "requestBody" in item:
        schema = dict(resolve(item["requestBody"]["content"]["application/json"]["schema"], document))
    elif "parameters" in item:
        parameters = (dict(resolve(parameter, document)) for parameter in item["parameters"])
        properties = {parameter["name"]: parameter["schema"] for parameter in parameters if parameter["in"] == "query"}
        schema = {"type": "object", "properties": properties, "additionalProperties": False}
    resolved = {field: resolve(value, document) for field, value in schema.get("properties", {}).items()}
    defaults = {field: value["default"] for field, value in resolved.items() if "default" in value}
    unless = {field: value["x-default-unless"] for field, value in resolved.items() if "x-default-unless" in value}
    if schema:
        schema["components"] = document["components"]
    return Operation(item["operationId"], method.upper(), path, schema, defaults, unless)
