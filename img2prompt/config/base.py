"""What every config is: a frozen dataclass that goes to JSON and back."""

import copy
import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, Self

from pydantic import ConfigDict, TypeAdapter, ValidationError

from img2prompt.errors import UserError


class Config:
    """Base of all configs: JSON, dotted replacement and fingerprint."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)  # type: ignore[call-overload]

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str, where: str = "config") -> Self:
        """Read a config back; an unknown key or a bad value is an error that names it."""
        try:
            return TypeAdapter(cls).validate_json(text)
        except ValidationError as error:
            lines = [
                f"  {'.'.join(map(str, e['loc'])) or 'file'}: {e['msg']} (got {e['input']!r:.80})"
                for e in error.errors()
            ]
            raise UserError(
                f"{where} is not a valid {cls.__name__}:\n" + "\n".join(lines)
            ) from None

    def replace(self, changes: Mapping[str, Any]) -> Self:
        """A copy with dotted fields changed: `config.replace({"plan.lora_rate": 0.6})`."""
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


def check(ok: bool, field_name: str, value: object, allowed: str) -> None:
    if not ok:
        raise UserError(f"{field_name} is {value!r}; allowed: {allowed}")


def without(tree: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """A config as a tree, less its dotted settings `names`."""
    left = copy.deepcopy(dict(tree))
    for name in names:
        *parents, leaf = name.split(".")
        node = left
        for parent in parents:
            node = node.get(parent, {})
        node.pop(leaf, None)
    return left


def dotted(tree: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Every single setting of a config as a tree, by its dotted name."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        inside = isinstance(value, Mapping)
        found |= dotted(value, f"{above}{key}.") if inside else {above + key: value}
    return found


def differences(old: Any, new: Any, where: str = "") -> list[str]:
    """What differs between two trees, a line for each dotted name."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        lines = []
        for key in sorted({*old, *new}):
            lines += differences(old.get(key), new.get(key), f"{where}.{key}".lstrip("."))
        return lines
    return [] if old == new else [f"{where}: {old!r} there, {new!r} asked for"]
