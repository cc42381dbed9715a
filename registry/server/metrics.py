"""Prometheus metrics under registry:2's names, counted by hand: a few dictionary updates a request, text when asked."""

from __future__ import annotations

import time
from collections import Counter, defaultdict

from aiohttp.web_request import BaseRequest

from registry.exposition import Exposition, Histogram, labels
from registry.proxy import PullThrough
from registry.server.notices import Notice
from registry.server.replies import Reply
from registry.server.webhooks import Webhooks

_HANDLERS = {"upload": "blob_upload_chunk", "uploads": "blob_upload"}


class Metrics:
    """An observer of answers and a listener to notices; `text` is the exposition format."""

    def __init__(self, webhooks: Webhooks, proxy: PullThrough) -> None:
        self._webhooks = webhooks
        self._proxy = proxy
        self._requests: Counter[tuple[str, str, int]] = Counter()
        self._seconds: defaultdict[str, Histogram] = defaultdict(Histogram)
        self._sent: Counter[str] = Counter()
        self._received: Counter[str] = Counter()
        self._events: Counter[str] = Counter()
        self._started = time.time()

    def observe(self, request: BaseRequest, reply: Reply, kind: str, user: str, started: float) -> None:
        """Count one answer."""
        handler = _HANDLERS.get(kind, kind)
        self._requests[handler, request.method.lower(), reply.status] += 1
        self._seconds[handler].observe(time.perf_counter() - started)
        self._sent[handler] += reply.content_length if request.method != "HEAD" else 0
        self._received[handler] += request.content_length or 0

    def note(self, notice: Notice) -> None:
        """Count one event."""
        if not notice.is_look:
            self._events[notice.action] += 1

    def text(self) -> bytes:
        """Everything, in the format Prometheus scrapes."""
        shown = Exposition()
        shown.family(
            "registry_http_requests_total",
            "counter",
            [(labels(handler=h, method=m, code=c), n) for (h, m, c), n in sorted(self._requests.items())],
        )
        shown.histograms("registry_http_request_duration_seconds", "handler", self._seconds)
        for name, counter in (
            ("registry_http_response_size_bytes_total", self._sent),
            ("registry_http_request_size_bytes_total", self._received),
        ):
            shown.family(name, "counter", [(labels(handler=h), n) for h, n in sorted(counter.items())])
        events = [(labels(action=action), n) for action, n in sorted(self._events.items())]
        shown.family("registry_notifications_events_total", "counter", events)
        queues = self._webhooks.queues
        counts = {
            "Successes": sum(queue.delivered for queue in queues),
            "Failures": sum(queue.failed for queue in queues),
            "Dropped": sum(queue.dropped for queue in queues),
        }
        shown.family("registry_notifications_pending_total", "gauge", [("", sum(queue.waiting for queue in queues))])
        shown.family("registry_notifications_status_total", "counter", [(labels(code=c), n) for c, n in counts.items()])
        if self._proxy.is_active:
            self._show_proxy(shown)
        shown.family("process_start_time_seconds", "gauge", [("", self._started)])
        return shown.text()

    def _show_proxy(self, shown: Exposition) -> None:
        lookups, pulled = self._proxy.lookups, self._proxy.pulled_bytes
        hits, misses = ({kind: lookups[kind, hit] for kind in ("blob", "manifest")} for hit in (True, False))
        for name, samples in (
            ("requests", {kind: hits[kind] + misses[kind] for kind in hits}),
            ("hits", hits),
            ("misses", misses),
            ("pulled_bytes", {kind: pulled[kind] for kind in hits}),
        ):
            values = [(labels(type=kind), n) for kind, n in samples.items()]
            shown.family(f"registry_proxy_{name}_total", "counter", values)
