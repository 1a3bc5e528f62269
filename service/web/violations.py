"""What is wrong with a request, in sentences that a person understands, each with a pointer to the field.

The validator compiled from openapi.yaml decides whether a request is refused; this walks the same schema to say why. It is lazy
where the validator's own list of errors is complete: a megabyte of wrong items made that list take half a minute.
It knows the keywords that openapi.yaml uses, where `title` says what a value must be and `x-limits` what its limits are.
"""

from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

import orjson

from service.errors import Violation

Schema = Mapping[str, Any]
Path = tuple[str | int, ...]

_TYPES: Mapping[str, tuple[type, str]] = {
    "integer": (int, "an integer"),
    "number": (int | float, "a number"),  # type: ignore[dict-item]
    "string": (str, "a string"),
    "boolean": (bool, "true or false"),
    "array": (list, "a list"),
    "object": (dict, "an object"),
}
MAX_VIOLATIONS = 20  # told of one request; `maxItems` of Problem.errors in openapi.yaml
_MAX_SHOWN = 60  # characters of what was sent that a message repeats


def pointer(path: Sequence[str | int]) -> str:
    """Return the JSON pointer (RFC 6901) to a place in a document; "" is the whole of it."""
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in path)


def quoted(path: Sequence[str | int]) -> str:
    """Return the place as messages say it: `seed[3].pitch`."""
    if not path:
        return "the request"
    head, *rest = (_cut(part) if isinstance(part, str) else part for part in path)
    return f"`{head}{''.join(f'[{part}]' if isinstance(part, int) else f'.{part}' for part in rest)}`"


def shown(value: Any) -> str:
    """Return a value as JSON, cut where it is long."""
    try:
        return _cut(orjson.dumps(value).decode())
    except TypeError:  # orjson reads 1024 levels of lists in lists, but writes only 254
        return "a value nested too deeply to show"


def resolve(schema: Schema, root: Schema) -> Schema:
    """Follow the reference of a schema within `root`; what stands beside a reference wins."""
    if "$ref" not in schema:
        return schema
    target: Any = root
    for part in schema["$ref"].removeprefix("#/").split("/"):
        target = target[part]
    return {**resolve(target, root), **{key: value for key, value in schema.items() if key != "$ref"}}


def explain(value: Any, schema: Schema, root: Schema, path: Path = ()) -> Iterator[Violation]:
    """Yield what is wrong with a value, in order; nothing if it follows the schema.

    Parameters
    ----------
    value : Any
        Parsed JSON.
    schema : Schema
        What it must be. The alternatives of an `anyOf` must differ in type.
    root : Schema
        Where references are looked up.
    path : tuple of str and int
        Where the value stands.
    """
    schema = resolve(schema, root)
    if "anyOf" in schema:
        fitting = [alternative for alternative in schema["anyOf"] if _fits(value, alternative, root)]
        if fitting:
            yield from explain(value, fitting[0], root, path)
        else:
            yield _must_be(schema["title"], value, path)
    elif not _fits(value, schema, root):
        yield _must_be(schema.get("title") or _TYPES[schema["type"]][1], value, path)
    elif isinstance(value, dict):
        yield from _explain_object(value, schema, root, path)
    elif isinstance(value, list):
        low, high = schema["minItems"], schema["maxItems"]
        if low <= len(value) <= high:
            for i, item in enumerate(value):
                yield from explain(item, schema["items"], root, (*path, i))
        else:
            yield _must_be(f"a list of {low} to {high} items, not {len(value)}", value, path)
    elif "enum" in schema and value not in schema["enum"]:
        yield _must_be("one of " + ", ".join(map(shown, schema["enum"])), value, path)
    elif "minimum" in schema and not schema["minimum"] <= value <= schema["maximum"]:
        limits = f", {schema['x-limits']}" if "x-limits" in schema else ""
        yield _must_be(f"in [{schema['minimum']}, {schema['maximum']}]{limits}", value, path)
    elif "minLength" in schema and not schema["minLength"] <= len(value) <= schema["maxLength"]:
        yield _must_be(f"{schema['minLength']} to {schema['maxLength']} characters long", value, path)


def _explain_object(value: Mapping[str, Any], schema: Schema, root: Schema, path: Path) -> Iterator[Violation]:
    properties = schema["properties"]
    for name in schema.get("required", ()):
        if name not in value:
            yield Violation(pointer((*path, name)), f"{quoted((*path, name))} is missing")
    for name, item in value.items():
        inner = (*path, name)
        if name in properties:
            yield from explain(item, properties[name], root, inner)
        else:
            near = get_close_matches(_cut(name), properties, n=1)
            hint = f"did you mean `{near[0]}`?" if near else f"there are {', '.join(properties)}"
            yield Violation(pointer(inner), f"{quoted(inner)} is not a field; {hint}")


def _must_be(what: str, value: Any, path: Path) -> Violation:
    return Violation(pointer(path), f"{quoted(path)} must be {what}; got {shown(value)}")


def _fits(value: Any, schema: Schema, root: Schema) -> bool:
    """Return whether a value is of the type, or of one of the types, that a schema is about."""
    schema = resolve(schema, root)
    if "anyOf" in schema:
        return any(_fits(value, alternative, root) for alternative in schema["anyOf"])
    name = schema["type"]
    if isinstance(value, bool):
        return bool(name == "boolean")
    if name == "integer" and isinstance(value, float):
        return value.is_integer()  # JSON Schema: 1.0 is an integer
    return isinstance(value, _TYPES[name][0])


def _cut(text: str) -> str:
    return text if len(text) <= _MAX_SHOWN else text[: _MAX_SHOWN - 1] + "…"
