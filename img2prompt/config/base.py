"""Base class of all configs: frozen dataclasses with declared ranges that go to JSON and back."""

import copy
import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from img2prompt.config.ranges import allowed, annotation_at, field_types, problems
from img2prompt.errors import UserError

OUT_OF_RANGE = {
    "greater_than",
    "greater_than_equal",
    "less_than",
    "less_than_equal",
    "too_short",
    "string_too_short",
}
"""Pydantic's error types for values outside a declared range."""


class Config:
    """Base of all configs: checked ranges, JSON, dotted replacement and fingerprint.

    Fields declare their ranges in their types. A rule over several fields goes into the
    `__post_init__` of a subclass, which calls this one first.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    section: ClassVar[str] = ""
    """Name of this config as a field of others, and of its options: `optim` in `optim.lr`."""

    def __post_init__(self) -> None:
        prefix = f"{self.section}." if self.section else ""
        lines = [
            line
            for name, annotation in field_types(type(self)).items()
            for line in problems(f"{prefix}{name}", getattr(self, name), annotation)
        ]
        if lines:
            raise UserError("\n".join(lines))

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)  # type: ignore[call-overload]

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str, where: str = "config") -> Self:
        """Read a config back; an unknown key or a bad value is an error that names it."""
        try:
            return _adapter(cls).validate_json(text)
        except ValidationError as error:
            errors = [detail for detail in error.errors() if not _is_aftermath(detail)]
            lines = "".join(f"\n  {_explain(cls, detail)}" for detail in errors)
            raise UserError(f"{where} is not a valid {cls.__name__}:{lines}") from None

    def replace(self, changes: Mapping[str, Any]) -> Self:
        """Return a copy with dotted fields changed: `config.replace({"plan.lora_rate": 0.6})`."""
        tree = self.to_dict()
        for key, value in changes.items():
            *parents, leaf = key.split(".")
            node = tree
            for parent in parents:
                node = node.get(parent) if isinstance(node, dict) else None
            if not isinstance(node, dict) or leaf not in node:
                raise UserError(f"{type(self).__name__} has no field {key!r}")
            node[leaf] = value
        return type(self).from_json(json.dumps(tree), where=f"{type(self).__name__} {changes}")

    def fingerprint(self) -> str:
        """16 hex digits that are equal exactly when all settings are equal."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:16]


@functools.cache
def _adapter(kind: type[Config]) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _is_aftermath(error: ErrorDetails) -> bool:
    """Tell if a tuple is too short for pydantic only because it left out the invalid items."""
    return error["type"] == "too_short" and len(error["input"]) >= error["ctx"]["min_length"]


def _explain(kind: type[Config], error: ErrorDetails) -> str:
    """Word an error of pydantic as the constructor of the config would."""
    name, value = ".".join(map(str, error["loc"])), error["input"]
    if error["type"] in OUT_OF_RANGE:
        return f"{name} is {value!r}; allowed: {allowed(annotation_at(kind, error['loc']))}"
    if error["type"] == "value_error":  # raised by a `__post_init__`, with the field's name in it
        return f"{name}: {error['ctx']['error']}".removeprefix(": ")
    return f"{name or 'file'}: {error['msg']} (got {value!r:.80})"


def check(ok: bool, field_name: str, value: object, allowed: str) -> None:
    """Raise a UserError unless a rule over several fields holds."""
    if not ok:
        raise UserError(f"{field_name} is {value!r}; allowed: {allowed}")


def without(tree: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Return a copy of a config's tree, less the dotted settings `names`."""
    rest = copy.deepcopy(dict(tree))
    for name in names:
        *parents, leaf = name.split(".")
        node = rest
        for parent in parents:
            node = node.get(parent, {})
        node.pop(leaf, None)
    return rest


def dotted(tree: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Flatten a config's tree: every setting by its dotted name."""
    settings: dict[str, Any] = {}
    for key, value in tree.items():
        is_section = isinstance(value, Mapping)
        settings |= dotted(value, f"{above}{key}.") if is_section else {above + key: value}
    return settings


def completed(kind: type[Config], tree: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a saved tree with the defaults of settings that were added after it was written.

    A tree that is no valid config today is returned as it is.
    """
    try:
        return json.loads(kind.from_json(json.dumps(tree)).to_json())
    except UserError:
        return tree


def differences(saved: Any, requested: Any, name: str = "") -> list[str]:
    """Compare two trees: a line for each dotted name whose values differ."""
    if isinstance(saved, Mapping) and isinstance(requested, Mapping):
        lines = []
        for key in sorted({*saved, *requested}):
            below = f"{name}.{key}".lstrip(".")
            lines += differences(saved.get(key), requested.get(key), below)
        return lines
    return [] if saved == requested else [f"{name}: saved {saved!r}, requested {requested!r}"]
