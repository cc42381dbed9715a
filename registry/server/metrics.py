"""Prometheus metrics under registry:2's names, counted by hand: a few dictionary updates a request, text when asked."""

from __future__ import annotations

import bisect
import time
from collections import Counter

from aiohttp.web_request import BaseRequest

from registry.proxy import PullThrough
from registry.server.notices import Notice
from registry.server.replies import Reply
from registry.server.webhooks import Webhooks

_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_HANDLERS = {"upload": "blob_upload_chunk", "uploads": "blob_upload"}


class Metrics:
    """An observer of answers and a listener to notices; `text` is the exposition format."""

    def __init__(self, webhooks: Webhooks, proxy: PullThrough) -> None:
        self._webhooks = webhooks
        self._proxy = proxy
        self._requests: Counter[tuple[str, str, int]] = Counter()
        self._seconds: Counter[str] = Counter()
        self._buckets: dict[str, list[int]] = {}
        self._sent: Counter[str] = Counter()
        self._received: Counter[str] = Counter()
        self._events: Counter[str] = Counter()
        self._started = time.time()

    def observe(self, request: BaseRequest, reply: Reply, kind: str, user: str, started: float) -> None:
        """Count one answer."""
        handler = _HANDLERS.get(kind, kind)
        self._requests[handler, request.method.lower(), reply.status] += 1
        took = time.perf_counter() - started
        self._seconds[handler] += took  # type: ignore[assignment]
        buckets = self._buckets.get(handler)
        if buckets is None:
            buckets = self._buckets[handler] = [0] * (len(_BUCKETS) + 1)
        buckets[bisect.bisect_left(_BUCKETS, took)] += 1
        self._sent[handler] += reply.content_length if request.method != "HEAD" else 0
        self._received[handler] += request.content_length or 0

    def note(self, notice: Notice) -> None:
        """Count one event."""
        if not notice.is_look:
            self._events[notice.action] += 1

    def text(self) -> bytes:
        """Everything, in the format Prometheus scrapes."""
        lines: list[str] = []

        def family(name: str, kind: str, samples: list[tuple[str, float]]) -> None:
            lines.append(f"# TYPE {name} {kind}")
            lines.extend(f"{name}{labels} {value:g}" for labels, value in samples)

        family(
            "registry_http_requests_total",
            "counter",
            [(_labels(handler=h, method=m, code=c), n) for (h, m, c), n in sorted(self._requests.items())],
        )
        lines.append("# TYPE registry_http_request_duration_seconds histogram")
        for handler, buckets in sorted(self._buckets.items()):
            total = 0
            for bound, count in zip((*map(str, _BUCKETS), "+Inf"), buckets, strict=True):
                total += count
                lines.append(
                    f"registry_http_request_duration_seconds_bucket{_labels(handler=handler, le=bound)} {total}"
                )
            base = "registry_http_request_duration_seconds"
            lines.append(f"{base}_sum{_labels(handler=handler)} {self._seconds[handler]:g}")
            lines.append(f"{base}_count{_labels(handler=handler)} {total}")
        for name, counter in (
            ("registry_http_response_size_bytes_total", self._sent),
            ("registry_http_request_size_bytes_total", self._received),
        ):
            family(name, "counter", [(_labels(handler=h), n) for h, n in sorted(counter.items())])
        events = [(_labels(action=action), n) for action, n in sorted(self._events.items())]
        family("registry_notifications_events_total", "counter", events)  # type: ignore[arg-type]
        queues = self._webhooks.queues
        counts = {
            "Successes": sum(queue.delivered for queue in queues),
            "Failures": sum(queue.failed for queue in queues),
            "Dropped": sum(queue.dropped for queue in queues),
        }
        family("registry_notifications_pending_total", "gauge", [("", sum(queue.waiting for queue in queues))])
        family("registry_notifications_status_total", "counter", [(_labels(code=c), n) for c, n in counts.items()])
        if self._proxy.is_active:
            lookups, pulled = self._proxy.lookups, self._proxy.pulled_bytes
            hits, misses = ({kind: lookups[kind, hit] for kind in ("blob", "manifest")} for hit in (True, False))
            for name, samples in (
                ("requests", {kind: hits[kind] + misses[kind] for kind in hits}),
                ("hits", hits),
                ("misses", misses),
                ("pulled_bytes", {kind: pulled[kind] for kind in hits}),
            ):
                values: list[tuple[str, float]] = [(_labels(type=kind), n) for kind, n in samples.items()]
                family(f"registry_proxy_{name}_total", "counter", values)
        family("process_start_time_seconds", "gauge", [("", self._started)])
        return ("\n".join(lines) + "\n").encode()


def _labels(**labels: object) -> str:
    inside = ",".join(f'{name}="{value}"' for name, value in labels.items())
    return "{" + inside + "}"
