"""Where everything lies, as pure functions of names. The tree is registry:2's, so either server can serve the other's
folder.

Below the driver's root:

    docker/registry/v2/
      blobs/<alg>/<hh>/<hex>/data                                   bytes: layers, configs and manifests alike
      repositories/<name>/
        _layers/<alg>/<hex>/link                                    this repository may serve that blob
        _manifests/revisions/<alg>/<hex>/link                       ... and that manifest
        _manifests/tags/<tag>/current/link                          what the tag names now
        _manifests/tags/<tag>/index/<alg>/<hex>/link                everything it ever named
        _uploads/<uuid>/data, startedat                             an upload in progress
    berth/                                                          ours alone; no registry:2 looks here
      tmp/                                                          unfinished files, emptied by age at start and
                                                                    every hour
      tmp/judged-<id> judged-<id>.origin                            what a collector has put out of reach, and where it
                                                                    was: put back should the collector die
      state/<name>                                                  small documents: pull times, notices, cache
      deadlines

`<hh>` is the first two characters of `<hex>`. A link file holds exactly a digest, no newline; its target may have
another algorithm than its own path (registry:2 stores sha512 pushes under sha256). Links below a digest never change,
so several of them may be one file (hard links); `current/link` is always a file of its own. Names are checked before
they come here: a repository name has no component that starts with `_` or a dot, so it can never reach a reserved
folder.
"""

from __future__ import annotations

from registry.digest import Digest

BASE = "docker/registry/v2"
BLOBS = f"{BASE}/blobs"
REPOSITORIES = f"{BASE}/repositories"
TEMPORARY = "berth/tmp"
JUDGED = "judged-"
STATE = "berth/state"
STARTED = "startedat"


def _folded(digest: Digest) -> str:
    return f"{digest.algorithm}/{digest.encoded}"


def blob_folder(digest: Digest) -> str:
    """The folder of one blob, which a collector removes as a whole."""
    encoded = digest.encoded
    return f"{BLOBS}/{digest.algorithm}/{encoded[:2]}/{encoded}"


def blob_data(digest: Digest) -> str:
    """A blob's bytes."""
    return blob_folder(digest) + "/data"


def repository(name: str) -> str:
    """A repository's folder; other repositories may lie inside it."""
    return f"{REPOSITORIES}/{name}"


def layers(name: str) -> str:
    """The folder of a repository's blob links, by algorithm."""
    return f"{REPOSITORIES}/{name}/_layers"


def layer_link(name: str, digest: Digest) -> str:
    """The link that lets a repository serve a blob."""
    return f"{REPOSITORIES}/{name}/_layers/{_folded(digest)}/link"


def manifests(name: str) -> str:
    """The folder that makes a repository visible in the catalog."""
    return f"{REPOSITORIES}/{name}/_manifests"


def revisions(name: str) -> str:
    """The folder of a repository's manifests, by algorithm."""
    return f"{REPOSITORIES}/{name}/_manifests/revisions"


def revision_link(name: str, digest: Digest) -> str:
    """The link that makes a blob a manifest of this repository."""
    return f"{REPOSITORIES}/{name}/_manifests/revisions/{_folded(digest)}/link"


def tags(name: str) -> str:
    """The folder whose children are the repository's tags."""
    return f"{REPOSITORIES}/{name}/_manifests/tags"


def tag_folder(name: str, tag: str) -> str:
    """One tag with its history."""
    return f"{REPOSITORIES}/{name}/_manifests/tags/{tag}"


def tag_current(name: str, tag: str) -> str:
    """What the tag names now."""
    return f"{REPOSITORIES}/{name}/_manifests/tags/{tag}/current/link"


def tag_history(name: str, tag: str) -> str:
    """The folder of everything the tag ever named, by algorithm."""
    return f"{REPOSITORIES}/{name}/_manifests/tags/{tag}/index"


def tag_history_link(name: str, tag: str, digest: Digest) -> str:
    """One entry of a tag's history."""
    return f"{REPOSITORIES}/{name}/_manifests/tags/{tag}/index/{_folded(digest)}/link"


def is_history(path: str) -> bool:
    """Whether it says what a tag named at some time. Only registry:2 ever looks there, to clean up."""
    return "/index/" in path.partition("/_manifests/tags/")[2]


def is_kept_by_age(path: str) -> bool:
    """Whether a collector goes by the age of this file: bytes, and links that are written once."""
    return path.endswith("/data") or "/_layers/" in path or "/_manifests/revisions/" in path


def uploads(name: str) -> str:
    """The folder of a repository's uploads in progress."""
    return f"{REPOSITORIES}/{name}/_uploads"


def upload_folder(name: str, upload_id: str) -> str:
    """One upload in progress."""
    return f"{REPOSITORIES}/{name}/_uploads/{upload_id}"


def upload_data(name: str, upload_id: str) -> str:
    """The bytes received so far."""
    return f"{REPOSITORIES}/{name}/_uploads/{upload_id}/data"


def upload_started(name: str, upload_id: str) -> str:
    """When it began: RFC 3339 UTC, whole seconds."""
    return f"{REPOSITORIES}/{name}/_uploads/{upload_id}/{STARTED}"


def upload(name: str, upload_id: str) -> tuple[str, tuple[str, ...]]:
    """An upload's folder and what lies in it; the mark that it is one goes first."""
    return upload_folder(name, upload_id), (STARTED, "data")


def temporary(name: str) -> str:
    """An unfinished file of ours."""
    return f"{TEMPORARY}/{name}"


def state(name: str) -> str:
    """A small document of ours."""
    return f"{STATE}/{name}"
