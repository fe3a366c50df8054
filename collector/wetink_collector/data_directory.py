"""The directory a collector keeps its store in: made where it is not there, and held by one collector at a time."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from wetink_collector.store.interface import StoreUnusable

LOCK_NAME: Final = "lock"


@contextmanager
def held(directory: Path) -> Iterator[None]:
    """Hold a directory while the body runs. The kernel lets go of it when the process dies, however it dies.

    Raises:
        StoreUnusable: It cannot be made or written, or another collector holds it.
    """
    try:
        _make(directory)
        lock = os.open(directory / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        message = f"data directory {directory} cannot be written: {error.strerror}; give one that can be with --data"
        raise StoreUnusable(message) from error
    try:
        _lock(lock, directory)
        yield
    finally:
        os.close(lock)


def is_held(directory: Path) -> bool:
    """Whether a collector holds a directory now."""
    try:
        lock = os.open(directory / LOCK_NAME, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(lock)
    return False


def sync_directory(directory: Path) -> None:
    """Make durable which files a directory has, under which names: an fsync of a file does not say so of its name.

    Raises:
        OSError: That failed.
    """
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _make(directory: Path) -> None:
    if directory.is_dir():
        return
    _make(directory.absolute().parent)
    directory.mkdir(mode=0o700, exist_ok=True)
    sync_directory(directory.absolute().parent)


def _lock(lock: int, directory: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        message = f"data directory {directory} is in use by another collector; stop it, or give another --data"
        raise StoreUnusable(message) from error
    except OSError as error:
        message = f"data directory {directory} cannot be locked: {error.strerror}; give one on a local disk"
        raise StoreUnusable(message) from error
