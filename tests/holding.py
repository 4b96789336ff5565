"""Networks that stand still, so that a test decides what waits for them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from dgiqa.scorer import Scorer


@contextmanager
def held(scorer: Scorer) -> Iterator[None]:
    """No network runs inside."""
    networks = scorer.stages.networks
    with ExitStack() as stack:
        for _ in range(networks.parallel):
            stack.enter_context(networks.turn)
        yield
