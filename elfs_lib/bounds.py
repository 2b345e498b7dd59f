"""Bounds of settings: stated once beside the field, for the configuration and for parameters."""

from __future__ import annotations

import dataclasses
import functools
from typing import Annotated, Any, get_type_hints

import numpy as np
import pydantic
from pydantic import ConfigDict, Field, TypeAdapter

from elfs_lib.errors import ElfsError, fault_sentence, first_fault

#: No value is turned into another type: true is not a number and '0.1' is not a share.
STRICT = ConfigDict(strict=True, allow_inf_nan=False)


def bounded(default: Any = dataclasses.MISSING, **bounds: float) -> Any:
    """A dataclass field with bounds: ``ge``, ``gt``, ``le``, ``lt``, as pydantic's Field has them.

    Example:
        >>> @dataclasses.dataclass(frozen=True)
        ... class Config:
        ...     heads: int = bounded(50, ge=1)
        ...     def __post_init__(self):
        ...         check_bounds(self)
        >>> Config(heads=0)
        Traceback (most recent call last):
        elfs_lib.errors.ElfsError: heads is 0 but should be greater than or equal to 1.
    """
    return dataclasses.field(default=default, metadata=bounds)


def check_bounds(config: Any) -> None:
    """Check the type and the bounds of every field of a dataclass.

    Raises:
        ElfsError: one sentence on the first that is wrong.
    """
    for name, checker in _checkers(type(config)).items():
        value = getattr(config, name)
        try:
            # NumPy's numbers are numbers here
            checker.validate_python(value.item() if isinstance(value, np.generic) else value)
        except pydantic.ValidationError as error:
            raise ElfsError(fault_sentence(name, value, first_fault(error))) from None


@functools.cache
def _checkers(config: type) -> dict[str, TypeAdapter]:
    kinds = get_type_hints(config)
    return {
        field.name: TypeAdapter(
            Annotated[kinds[field.name], Field(**field.metadata)], config=STRICT
        )
        for field in dataclasses.fields(config)
    }


def parameter(config: type, name: str, description: str, **changes: Any) -> Any:
    """The field of a pydantic model that sets a field of a configuration: with its default and
    bounds.

    Args:
        config: A dataclass with :func:`bounded` fields.
        name: Of the field.
        description: What people read.
        **changes: Of pydantic's Field, such as another default.
    """
    field = next(field for field in dataclasses.fields(config) if field.name == name)
    return Field(**{"default": field.default, **field.metadata, **changes}, description=description)
