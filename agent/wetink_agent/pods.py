"""The pods of this host by their containers, from a list in a file or at a URL: the API server's, or kubelet's.

Both serve the JSON of a ``PodList``. The API server needs no more than the right to list pods, with
``?fieldSelector=spec.nodeName=NAME`` for those of one node; kubelet's ``/pods`` needs rights that are worth far more.

Only names are taken. A list that cannot be read costs labels and never a target: each read has a deadline and a bound.
"""

import http.client
import json
import ssl
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import SplitResult, urlsplit

import structlog

from wetink_agent.errors import TrackingError

READ_SECONDS_MAX: Final = 3.0
"""How long a read may take, and how long a new target waits for one."""

AGAIN_SECONDS: Final = 2.0
"""How long a list counts as new: a container that is not in it is looked for in a newer one, after that."""

AFTER_FAILURE_SECONDS: Final = 30.0
"""How long a list that could not be read is left alone."""

LIST_BYTES_MAX: Final = 32 << 20
"""Bound on a list: some hundred pods a node, of at most a megabyte and a half, and mostly of 10 KiB."""

SERVICE_ACCOUNT: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")
"""Where a pod finds its token and the authority it may trust."""

_CHUNK_BYTES: Final = 256 << 10
_STATIC_POD: Final = "kubernetes.io/config.hash"

log = structlog.get_logger()


class PodsUnusable(TrackingError):
    """A list of pods cannot be read. The sentence says why."""


@dataclass(frozen=True, slots=True)
class PodSource:
    """Where the list is.

    Args:
        location: A path, or a URL of http or https.
        token: File with the bearer token; read each time, since tokens are renewed. Only https gets it.
        authority: File with the certificates that the server's is checked against.
    """

    location: str
    token: Path = SERVICE_ACCOUNT / "token"
    authority: Path = SERVICE_ACCOUNT / "ca.crt"


@dataclass(frozen=True, slots=True)
class Pod:
    """One pod. ``containers`` has the names of those that have an id by now, by their ids."""

    name: str
    namespace: str
    containers: Mapping[str, str] = field(default_factory=dict)
    only_container: str = ""
    """The name of its container, where it has a single one: known before the list has the container's id."""

    def labels(self, container_id: str) -> dict[str, str]:
        """Give the labels of a process of a container; empty ones are not known."""
        container = self.containers.get(container_id, self.only_container)
        return {"pod": self.name, "namespace": self.namespace, "container": container}


class PodList:
    """The pods of this host, read again when a container is asked for that is not there. Used by several threads."""

    def __init__(self, source: PodSource) -> None:
        """Prepare; nothing is read yet."""
        self._source = source
        self._lock = threading.Lock()
        self._by_uid: Mapping[str, Pod] = {}
        self._by_container: Mapping[str, Pod] = {}
        self._reading: threading.Thread | None = None
        self._read_again_at = 0.0
        self._has_failed = False

    def find(self, pod_uid: str, container_id: str) -> dict[str, str]:
        """Give ``pod``, ``namespace`` and ``container`` of a container, as far as they are known in time."""
        labels = self._look(pod_uid, container_id)
        if not labels.get("container"):
            self._read()
            labels = self._look(pod_uid, container_id)
        return labels

    def _look(self, pod_uid: str, container_id: str) -> dict[str, str]:
        with self._lock:
            pod = self._by_container.get(container_id) or self._by_uid.get(pod_uid)
        return pod.labels(container_id) if pod else {}

    def _read(self) -> None:
        """Have the list read, unless it is new, and wait for that no longer than the deadline."""
        with self._lock:
            if self._reading is None and time.monotonic() >= self._read_again_at:
                # A thread of its own, and given up on when it is late: no deadline reaches into the resolver.
                self._reading = threading.Thread(target=self._take, name="pods", daemon=True)
                self._reading.start()
            reading = self._reading
        if reading is not None:
            reading.join(READ_SECONDS_MAX)

    def _take(self) -> None:
        try:
            pods = dict(parse(read(self._source)))
        except PodsUnusable as error:
            if not self._has_failed:
                log.warning("pods_unreadable", why=str(error))
            self._end_reading(AFTER_FAILURE_SECONDS, has_failed=True)
            return
        by_container = {container: pod for pod in pods.values() for container in pod.containers}
        with self._lock:
            self._by_uid, self._by_container = pods, by_container
        if self._has_failed:
            log.info("pods_readable_again")
        self._end_reading(AGAIN_SECONDS, has_failed=False)

    def _end_reading(self, pause_seconds: float, *, has_failed: bool) -> None:
        with self._lock:
            self._has_failed = has_failed
            self._read_again_at = time.monotonic() + pause_seconds
            self._reading = None


def read(source: PodSource) -> bytes:
    """Give a list as it is.

    Raises:
        PodsUnusable: It cannot be read, is too large, or does not come in time.
    """
    try:
        url = urlsplit(source.location)
        if url.scheme in {"http", "https"}:
            return _fetch(url, source)
        with Path(source.location).open("rb") as file:
            return _bounded(iter(lambda: file.read(_CHUNK_BYTES), b""), source)
    except (OSError, http.client.HTTPException) as error:
        message = f"the list of pods at {source.location} cannot be read: {error}"
        raise PodsUnusable(message) from error
    except ValueError:
        # Its words may quote the token, and so may its chain.
        message = f"the list of pods at {source.location!r} cannot be asked for: its address or its token is malformed"
        raise PodsUnusable(message) from None


def parse(text: bytes) -> Iterator[tuple[str, Pod]]:
    """Give the pods of a list, each by its uid; one of kubelet's own by the hash that its cgroup has in that place.

    Raises:
        PodsUnusable: It is no list of pods.
    """
    try:
        items = json.loads(text)["items"]
        for item in items or ():
            metadata = item["metadata"]
            pod = _pod(item)
            yield _text(metadata["uid"]), pod
            if static := (metadata.get("annotations") or {}).get(_STATIC_POD):
                yield _text(static), pod
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        message = f"this is no list of pods: {error!r}"
        raise PodsUnusable(message) from error


def _pod(item: Mapping[str, Mapping[str, object]]) -> Pod:
    metadata, spec, status = item["metadata"], item.get("spec") or {}, item.get("status") or {}
    containers = {}
    for kind in ("containerStatuses", "initContainerStatuses", "ephemeralContainerStatuses"):
        for one in _objects(status.get(kind)):
            # RUNTIME://ID, and nothing while it is being made.
            container_id = _text(one.get("containerID", "")).rpartition("://")[2]
            if container_id:
                containers[container_id] = _text(one["name"])
    names = [_text(one["name"]) for kind in ("initContainers", "containers") for one in _objects(spec.get(kind))]
    only = names[0] if len(names) == 1 else ""
    return Pod(_text(metadata["name"]), _text(metadata["namespace"]), containers, only)


def _objects(value: object) -> list[Mapping[str, object]]:
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
        message = "a list of objects was due"
        raise TypeError(message)
    return value


def _text(value: object) -> str:
    if not isinstance(value, str):
        message = f"a text was due, not {value!r:.50}"
        raise TypeError(message)
    return value


def _fetch(url: SplitResult, source: PodSource) -> bytes:
    headers = {"Accept": "application/json"}
    connection: http.client.HTTPConnection
    if url.scheme == "https":
        context = ssl.create_default_context(cafile=str(source.authority))
        connection = http.client.HTTPSConnection(url.netloc, timeout=READ_SECONDS_MAX, context=context)
        headers["Authorization"] = f"Bearer {source.token.read_text(encoding='ascii').strip()}"
    else:
        connection = http.client.HTTPConnection(url.netloc, timeout=READ_SECONDS_MAX)
    try:
        connection.request("GET", f"{url.path or '/'}?{url.query}" if url.query else url.path or "/", headers=headers)
        response = connection.getresponse()
        if response.status != http.client.OK:
            message = f"the list of pods at {source.location} was refused: {response.status} {response.reason}"
            raise PodsUnusable(message)
        return _bounded(iter(lambda: response.read1(_CHUNK_BYTES), b""), source)
    finally:
        connection.close()


def _bounded(chunks: Iterator[bytes], source: PodSource) -> bytes:
    deadline = time.monotonic() + READ_SECONDS_MAX
    text = bytearray()
    for chunk in chunks:
        text += chunk
        if len(text) > LIST_BYTES_MAX or time.monotonic() > deadline:
            message = f"the list of pods at {source.location} is over {LIST_BYTES_MAX} bytes, or takes too long"
            raise PodsUnusable(message)
    return bytes(text)
