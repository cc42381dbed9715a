"""Manifests over HTTP. Bytes go in and out unchanged; what they refer to must be in the repository already."""

from __future__ import annotations

from registry import errors
from registry.errors import RegistryError
from registry.manifest import MAX_MANIFEST_BYTES, parse_manifest
from registry.patterns import matches
from registry.proxy import PullThrough
from registry.reference import is_tag
from registry.server.blobs import check_match, matches_etag, parse_digest
from registry.server.bodies import read_body
from registry.server.notices import Notices
from registry.server.pushrules import PushRules
from registry.server.replies import Reply
from registry.server.requests import Call
from registry.store.hot import StoredManifest
from registry.store.repositories import Repositories
from registry.tasks import carry_through

_MOST_WARNING_BYTES = 4096


class ManifestHandlers:
    """Answers under `/v2/<name>/manifests/<reference>`."""

    def __init__(
        self,
        repositories: Repositories,
        notices: Notices,
        rules: PushRules,
        proxy: PullThrough,
    ) -> None:
        self._repositories = repositories
        self._notices = notices
        self._rules = rules
        self._proxy = proxy

    async def get(self, call: Call) -> Reply:
        """GET and HEAD, whatever `Accept` says: the type is in the answer, and only schema 2 and OCI are stored."""
        if ":" in call.reference:
            parse_digest(call.reference)
        stored = await self._find(call.repository, call.reference)
        check_match(call.header("If-Match"), stored.digest)
        self._notices.manifest("pull", call, stored)
        headers = manifest_headers(stored)
        if matches_etag(call.header("If-None-Match"), stored.digest):
            reply = Reply(304, headers)
        else:
            reply = Reply(200, headers, stored.data, len(stored.data))
        reply.warnings = self._warnings(call)
        return reply

    def _warnings(self, call: Call) -> list[str]:
        """What the administrator, or the state of an upstream, wants the client to know: as many as OCI allows."""
        texts = [text for pattern, text in call.settings.warnings.items() if matches(pattern, call.repository)]
        if self._proxy.is_stale(call.repository, call.reference):
            texts.insert(0, "the upstream cannot be asked; this is what it had when it was asked last")
        while sum(map(len, texts)) > _MOST_WARNING_BYTES:
            texts.pop()
        return texts

    async def _find(self, repository: str, reference: str) -> StoredManifest:
        route = self._proxy.route(repository)
        if route is not None:
            return await self._proxy.manifest(repository, reference, route)
        hot = self._repositories.hot_manifest(repository, reference)
        return hot or await self._repositories.manifest(repository, reference)

    async def put(self, call: Call) -> Reply:
        """PUT under a tag or a digest; `?tag=` adds tags to a push by digest."""
        if ":" in call.reference:
            parse_digest(call.reference)
        tags = list(call.query.get("tag", ()))
        for tag in tags:
            if not is_tag(tag):
                raise RegistryError(errors.TAG_INVALID, tag[:200])
        data = await read_body(call.request, MAX_MANIFEST_BYTES)
        content_type = call.header("Content-Type") or ""
        manifest = parse_manifest(data, content_type)
        await self._rules.check_push(call.repository, (*_tag_of(call), *tags), manifest)
        # Once the body is here the push is carried through, whether or not the client waits.
        digest = await carry_through(
            self._repositories.put_manifest(
                call.repository,
                call.reference,
                data,
                content_type,
                check=call.settings.validate_manifests,
                sparse_index=call.settings.sparse_indexes,
                tags=tags,
            )
        )
        self._notices.manifest("push", call, StoredManifest(digest, manifest.media_type, data))
        headers = {"Location": call.manifest_url(str(digest)), "Docker-Content-Digest": str(digest)}
        if manifest.subject is not None:
            headers["OCI-Subject"] = manifest.subject.digest
        if tags:
            headers["OCI-Tag"] = ", ".join(tags)
        reply = Reply(201, headers)
        reply.warnings = self._warnings(call)
        return reply

    async def delete(self, call: Call) -> Reply:
        """DELETE of a tag, or of a manifest with all tags that name it."""
        await self._rules.check_delete(call.repository, call.reference)
        if ":" in call.reference:
            digest = parse_digest(call.reference)
            dropped = await self._repositories.delete_manifest(call.repository, digest)
            self._notices.deleted(call, digest=digest)
            for tag in dropped:
                self._notices.deleted(call, tag=tag)
        else:
            await self._repositories.delete_tag(call.repository, call.reference)
            self._notices.deleted(call, tag=call.reference)
        return Reply(202)


def _tag_of(call: Call) -> tuple[str, ...]:
    return () if ":" in call.reference else (call.reference,)


def manifest_headers(stored: StoredManifest) -> dict[str, str]:
    """What every answer about a manifest carries."""
    return {
        "Content-Type": stored.media_type,
        "Docker-Content-Digest": str(stored.digest),
        "ETag": f'"{stored.digest}"',
    }


def is_manifest_reference(text: str) -> bool:
    """Whether a path part can name a manifest: a tag, or something that claims to be a digest."""
    return is_tag(text) or (":" in text and len(text) <= 256 and text.isprintable())
