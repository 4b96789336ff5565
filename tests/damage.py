"""Damage of the kinds that disks, networks and attackers make, drawn from a seed."""

from __future__ import annotations

from random import Random
from typing import Any

WRONG = (None, True, -1, 0, 1e308, 10**400, "", "x", "\ud800", "../x", "\0", [], [[]], {}, {"x": []}, "n" * 300)


def damaged(data: bytes, random: Random) -> bytes:
    """Bytes with one to four changes: a bit, some at random, some zero, some doubled, some lost."""
    out = bytearray(data)
    for _ in range(random.randint(1, 4)):
        at, length = random.randrange(len(out) or 1), random.randint(1, 16)
        change = random.randrange(5)
        if change == 0 and out:
            out[at] ^= 1 << random.randrange(8)
        elif change == 1:
            out[at : at + length] = random.randbytes(length)
        elif change == 2:
            out[at : at + length] = bytes(length)
        elif change == 3:
            out[at:at] = out[at : at + length]
        else:
            del out[at : at + length]
    return bytes(out)


def misshapen(document: Any, random: Random) -> Any:
    """A JSON document in which one value, one name or one entry is another."""
    if isinstance(document, dict) and document and random.random() < 0.8:
        name = random.choice(list(document))
        rest = {key: value for key, value in document.items() if key != name}
        change = random.randrange(8)
        if change == 0:
            return rest
        if change == 1:
            return {**rest, str(random.choice(WRONG)): document[name]}
        return {**document, name: misshapen(document[name], random)}
    if isinstance(document, list) and document and random.random() < 0.7:
        at = random.randrange(len(document))
        return [*document[:at], misshapen(document[at], random), *document[at + 1 :]]
    return random.choice(WRONG)
