"""What failed for a type of values on a device, so that no other product of that type tries it again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Lessons"]


@dataclass
class Lessons:
    """What is not tried again for products of one type of values.

    Attributes:
        killers: Sparse kernels that killed the process, or that come after too many such; and why.
        refused: Forms of splitting the reduction that the library refused for every kernel that was asked.
    """

    killers: dict[str, str] = field(default_factory=dict)
    refused: set[str] = field(default_factory=set)

    def learn_refusals(self, forms: Iterable[tuple[str, bool]]) -> None:
        """Take in (form, was it refused) of every kernel that one product had."""
        refused: dict[str, bool] = {}
        for form, no in forms:
            refused[form] = refused.get(form, True) and no
        self.refused |= {form for form, always in refused.items() if form and always}

    def merge(self, other: Lessons) -> None:
        """Take in what another process learned."""
        self.killers = {**other.killers, **self.killers}
        self.refused |= other.refused

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON types; `from_dict` reads them."""
        return {"killers": dict(sorted(self.killers.items())), "refused": sorted(self.refused)}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Lessons:
        """Read what `to_dict` gave.

        Raises:
            KeyError, TypeError, ValueError: It was not that.
        """
        killers = {str(key): str(why) for key, why in dict(fields["killers"]).items()}
        return cls(killers, {str(form) for form in fields["refused"]})
