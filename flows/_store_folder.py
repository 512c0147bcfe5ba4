"""A local folder as a place of objects."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import uuid
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq

__all__ = ["Folder"]

_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV}


class Folder:
    """A local folder. An object is written beside its place under a hidden name, then linked or renamed to it."""

    def __init__(self, root: str) -> None:
        self.root = Path(root)

    def exists(self, key: str) -> bool:
        try:
            return stat.S_ISREG((self.root / key).stat().st_mode)
        except (FileNotFoundError, NotADirectoryError):
            return False

    def read(self, key: str) -> bytes:
        return (self.root / key).read_bytes()

    def list(self, folder: str) -> Iterator[str]:
        def stop(error: OSError) -> None:
            # os.walk skips what it cannot list; gone or never made is fine, forbidden is not
            if not isinstance(error, (FileNotFoundError, NotADirectoryError)):
                raise error

        for parent, _, names in os.walk(self.root / folder, onerror=stop):
            yield from ((Path(parent) / name).relative_to(self.root).as_posix() for name in names)

    def create(self, key: str, data: bytes) -> bool:
        place = self.root / key
        if os.path.lexists(place):
            return False
        with self._written_beside(place, data) as temporary:
            try:
                os.link(temporary, place)
            except FileExistsError:
                return False
            except OSError as error:
                if error.errno not in _NO_LINKS:
                    raise
                return _renamed_without_links(temporary, place)
        return True

    def replace(self, key: str, data: bytes) -> None:
        place = self.root / key
        with self._written_beside(place, data) as temporary:
            temporary.replace(place)

    def delete(self, key: str) -> None:
        (self.root / key).unlink()

    def open_parquet(self, key: str) -> pq.ParquetFile:
        return pq.ParquetFile(self.root / key)

    @contextlib.contextmanager
    def _written_beside(self, place: Path, data: bytes) -> Iterator[Path]:
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
        except FileExistsError as error:  # of the folder, and not to be taken for the object's
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(place.parent)) from error
        temporary = place.parent / f".{uuid.uuid4().hex}.tmp"
        try:
            # Not tempfile, whose files nobody else may read: these become objects that other users of a shared folder
            # open. "x" creates with the usual mode.
            with temporary.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())  # a name must not outlive its bytes when the machine goes down
            yield temporary
        finally:
            temporary.unlink(missing_ok=True)


def _renamed_without_links(temporary: Path, place: Path) -> bool:
    """Create-only rename where the file system has no hard links (FAT, some network mounts).

    A rename overwrites, so looking and renaming happen under a lock on the folder, which the system lifts when its
    holder dies. Network mounts that do not share locks are safe within one machine only.
    """
    import fcntl  # not on Windows, whose file systems have links

    with (place.parent / ".lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if os.path.lexists(place):
            return False
        temporary.rename(place)
        return True
