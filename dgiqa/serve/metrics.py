"""A server's metrics, for Prometheus."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 30.0)


class Metrics:
    """Counters of one server, in a registry of their own. pending: how many images wait or are being scored."""

    def __init__(self, pending: Callable[[], int], **about: str) -> None:
        self.registry = CollectorRegistry()
        kept = {"registry": self.registry}
        self.requests = Counter("dgiqa_requests", "Requests by route and outcome.", ("route", "outcome"), **kept)
        self.seconds = Histogram(
            "dgiqa_request_seconds", "From headers to answer.", ("route",), buckets=SECONDS, **kept
        )
        self.images = Counter("dgiqa_images", "Images by outcome: scored, or the error's name.", ("outcome",), **kept)
        self.scores = Histogram("dgiqa_score", "Scores.", buckets=[i / 10 for i in range(1, 11)], **kept)
        self.tiles = Histogram("dgiqa_batch_tiles", "Tiles per run of the network.", buckets=(1, 2, 4, 8, 16), **kept)
        Gauge("dgiqa_pending_images", "Images that wait or are being scored.", **kept).set_function(pending)
        Gauge("dgiqa_info", "What serves.", tuple(about), **kept).labels(**about).set(1)
