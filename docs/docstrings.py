"""Docstrings name what they describe ("tiles: ... batch: ..."); on the site each name gets a line of its own."""

from __future__ import annotations

import re
from typing import Any

import griffe


class NamedParts(griffe.Extension):
    """Griffe's extension: parameters and fields that a docstring describes become a list."""

    def on_function(self, *, func: griffe.Function, **_: Any) -> None:
        """Rewrite the docstring of a function."""
        self._rewrite(func, {parameter.name for parameter in func.parameters})

    def on_class_members(self, *, cls: griffe.Class, **_: Any) -> None:
        """Rewrite the docstring of a class, once its fields are known."""
        fields = {name for name, member in cls.members.items() if member.is_attribute}
        self._rewrite(cls, fields | {parameter.name for parameter in cls.parameters})

    def _rewrite(self, thing: griffe.Object, names: set[str]) -> None:
        if thing.docstring:
            thing.docstring.value = listed(thing.docstring.value, names)


def listed(text: str, names: set[str]) -> str:
    """The text with a list item for every "name: " or "name, other: " that begins a sentence, if `names` has it."""
    if not names:
        return text
    one = "|".join(sorted(map(re.escape, names), key=len, reverse=True))
    found = rf"(?:(?<=[.;)])\s+|^)((?:{one})(?:,\s(?:{one}))*):\s"
    if not re.search(found, text, re.MULTILINE):
        return text
    text = re.sub(found, lambda match: f"\n\n- **{' '.join(match[1].split())}**: ", text, flags=re.MULTILINE)
    return re.sub(r"(?<=[.)])\s+(Raises )", r"\n\n\1", text)
