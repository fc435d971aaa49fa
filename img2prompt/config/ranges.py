"""Ranges of settings, declared in their types: `PositiveInt`, `Annotated[int, Field(ge=5)]`.

Pydantic enforces them when a config is read from JSON. `problems` enforces the same declarations
when a config is constructed, and both report in the words of `allowed`. A `description` replaces
those words where a number needs a unit.
"""

import functools
import math
import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import is_dataclass
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from pydantic import Field
from pydantic.fields import FieldInfo

PositiveInt = Annotated[int, Field(ge=1)]
NonNegativeInt = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
NonNegativeFloat = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
PositiveFraction = Annotated[float, Field(gt=0, le=1)]
FractionBelowOne = Annotated[float, Field(ge=0, lt=1)]

NUMBER = "a number"

_FITS: Mapping[str, Callable[[Any, Any], bool]] = {
    "ge": operator.ge,
    "gt": operator.gt,
    "le": operator.le,
    "lt": operator.lt,
    "min_length": lambda value, least: len(value) >= least,
}
_WORDS = {
    "ge": "{:g} or more",
    "gt": "above {:g}",
    "le": "at most {:g}",
    "lt": "below {:g}",
    "min_length": "{} or more values",
}


@functools.cache
def field_types(kind: type) -> Mapping[str, Any]:
    """Annotations of a dataclass by field name, with their declared ranges."""
    return get_type_hints(kind, include_extras=True)


def problems(name: str, value: Any, annotation: Any) -> Iterator[str]:
    """Yield a line for each value outside the range that its annotation declares.

    Items of a tuple are named by their position: `lora_rates.1 is 1.5; allowed: 0 to 1`.
    """
    bounds = _bounds(annotation)
    if not all(_FITS[key](value, bound) for key, bound in bounds.items()):
        yield f"{name} is {value!r}; allowed: {allowed(annotation)}"
    elif isinstance(value, float) and math.isnan(value):
        yield f"{name} is {value!r}; allowed: {NUMBER}"
    plain = _without_range(annotation)
    if get_origin(plain) is tuple:
        for number, item in enumerate(value):
            yield from problems(f"{name}.{number}", item, get_args(plain)[0])


def allowed(annotation: Any) -> str:
    """The declared range in words, such as `1 or more`, `0 to 1` or `above 0, at most 1`."""
    described = [info.description for info in _declarations(annotation) if info.description]
    if described:
        return described[0]
    bounds = _bounds(annotation)
    if bounds.keys() == {"ge", "le"}:
        return f"{bounds['ge']:g} to {bounds['le']:g}"
    return ", ".join(_WORDS[key].format(bound) for key, bound in bounds.items())


def annotation_at(annotation: Any, path: tuple[str | int, ...]) -> Any:
    """The annotation of the value at a `loc` of pydantic: field names, positions, union members."""
    for step in path:
        annotation = _without_range(annotation)
        if is_dataclass(annotation):
            annotation = field_types(annotation)[step]  # type: ignore[arg-type,index]
        elif isinstance(step, int):
            annotation = get_args(annotation)[0]
        else:
            members = {member.__name__: member for member in get_args(annotation)}
            annotation = members[step]
    return annotation


def _declarations(annotation: Any) -> list[FieldInfo]:
    extras = get_args(annotation)[1:] if get_origin(annotation) is Annotated else ()
    return [extra for extra in extras if isinstance(extra, FieldInfo)]


def _bounds(annotation: Any) -> dict[str, float]:
    """Declared bounds by their names in `Field`."""
    constraints = [bound for info in _declarations(annotation) for bound in info.metadata]
    bounds = {
        key: getattr(constraint, key)
        for constraint in constraints
        for key in _FITS
        if hasattr(constraint, key)
    }
    assert len(bounds) >= len(constraints), f"{annotation} declares more than {', '.join(_FITS)}"
    return bounds


def _without_range(annotation: Any) -> Any:
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation
