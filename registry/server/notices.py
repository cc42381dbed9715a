"""Notices: what happened in the registry, for whoever listens (webhooks, metrics, pull times, the engine)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from aiohttp.web_request import BaseRequest

from registry.digest import Digest
from registry.manifest import Descriptor, parse_manifest
from registry.server.requests import Call
from registry.store.hot import StoredManifest

OCTET_STREAM = "application/octet-stream"


@dataclass(frozen=True, slots=True)
class Origin:
    """Which request made something happen; empty for what the engine did itself."""

    request_id: str = ""
    address: str = ""
    host: str = ""
    method: str = ""
    user_agent: str = ""
    base_url: str = ""


_NOWHERE = Origin()


@dataclass(frozen=True, slots=True)
class Notice:
    """One thing that happened to content. `action` is push, pull, mount or delete, as in registry:2's events."""

    action: str
    repository: str
    digest: str = ""
    media_type: str = ""
    size: int = 0
    tag: str = ""
    from_repository: str = ""
    actor: str = ""
    origin: Origin = _NOWHERE
    is_manifest: bool = False
    # A HEAD: registry:2 tells webhooks of it as of a pull, but nothing was pulled.
    is_look: bool = False
    references: tuple[Descriptor, ...] = ()


class Notices:
    """Hands notices to listeners, which must be quick and must not raise."""

    def __init__(self) -> None:
        self._listeners: list[Callable[[Notice], None]] = []
        self._tells_origin = False
        # Whether notices of manifests say what these refer to; set where somebody wants to know.
        self.tells_references = False

    def listen(self, listener: Callable[[Notice], None], needs_origin: bool = False) -> None:
        """Add a listener. Where a notice came from is only found out when somebody needs it."""
        self._listeners.append(listener)
        self._tells_origin |= needs_origin

    def _origin(self, call: Call) -> Origin:
        return origin_of(call) if self._tells_origin else _NOWHERE

    def tell(self, notice: Notice) -> None:
        """Tell everybody."""
        for listener in self._listeners:
            listener(notice)

    def blob(self, action: str, call: Call, digest: Digest, size: int = 0, from_repository: str = "") -> None:
        """A blob was pushed, pulled or mounted."""
        if self._listeners:
            who, origin = call.identity.name, self._origin(call)
            self.tell(
                Notice(
                    action,
                    call.repository,
                    str(digest),
                    OCTET_STREAM,
                    size,
                    from_repository=from_repository,
                    actor=who,
                    origin=origin,
                    is_look=call.method == "HEAD",
                )
            )

    def looked(self, call: Call, digest: Digest, size: int) -> None:
        """A blob was asked after: many a time during a push, and told only where somebody wants to hear all."""
        if self._tells_origin:
            self.blob("pull", call, digest, size)

    def manifest(self, action: str, call: Call, stored: StoredManifest) -> None:
        """A manifest was pushed or pulled."""
        if self._listeners:
            self.tell(
                Notice(
                    action,
                    call.repository,
                    str(stored.digest),
                    stored.media_type,
                    len(stored.data),
                    tag="" if ":" in call.reference else call.reference,
                    actor=call.identity.name,
                    origin=self._origin(call),
                    is_manifest=True,
                    is_look=call.method == "HEAD",
                    references=parse_manifest(stored.data).references() if self.tells_references else (),
                )
            )

    def pushed(self, repository: str, reference: str, digest: Digest, data: bytes, media_type: str) -> None:
        """The engine pushed a manifest without a request."""
        tag = "" if ":" in reference else reference
        self.tell(Notice("push", repository, str(digest), media_type, len(data), tag, is_manifest=True))

    def deleted(self, call: Call, digest: Digest | None = None, tag: str = "") -> None:
        """A manifest, blob or tag was deleted."""
        if self._listeners:
            who, origin = call.identity.name, self._origin(call)
            self.tell(Notice("delete", call.repository, str(digest or ""), "", 0, tag, "", who, origin))


def origin_of(call: Call) -> Origin:
    """The facts of a request that notices carry."""
    headers = call.request.headers
    return Origin(
        call.request_id,
        _address(call.request),
        headers.get("Host", ""),
        call.method,
        headers.get("User-Agent", ""),
        call.url(""),
    )


def _address(request: BaseRequest) -> str:
    """Address and port of the client, as registry:2 writes them."""
    peer = request.transport.get_extra_info("peername") if request.transport is not None else None
    if not isinstance(peer, tuple):
        return request.remote or ""
    host, port = peer[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
