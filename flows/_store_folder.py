"""A local folder as a place of objects."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
import uuid
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq

from flows._store_objects import Entry
from t2v_core.errors import StoreError

__all__ = ["Folder"]

_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV}
_TEMPORARY = re.compile(r"\.[0-9a-f]{32}\.tmp")


class Folder:
    """A local folder. An object is written beside its place under a hidden name, then linked or renamed to it."""

    def __init__(self, root: str) -> None:
        self.root = Path(root)

    def exists(self, key: str) -> bool:
        try:
            return stat.S_ISREG(self._place(key).stat().st_mode)
        except (FileNotFoundError, NotADirectoryError):
            return False

    def read(self, key: str) -> bytes:
        return self._place(key).read_bytes()

    def read_part(self, key: str, start: int, length: int) -> bytes:
        with self._place(key).open("rb") as file:
            file.seek(start)
            return file.read(length)

    def list(self, folder: str) -> Iterator[str]:
        yield from (key for key, _ in self._walk(folder))

    def entries(self, folder: str) -> Iterator[Entry]:
        for key, found in self._walk(folder):
            with contextlib.suppress(FileNotFoundError):  # deleted since
                told = found.stat()
                yield Entry(key, told.st_size, told.st_mtime)

    def create(self, key: str, data: bytes) -> bool:
        place = self._place(key)
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
        place = self._place(key)
        with self._written_beside(place, data) as temporary:
            temporary.replace(place)

    def delete(self, key: str) -> None:
        self._place(key).unlink()

    def open_parquet(self, key: str) -> pq.ParquetFile:
        return pq.ParquetFile(self._place(key))

    def leftovers(self) -> Iterator[Entry]:
        yield from (entry for entry in self.entries("") if _TEMPORARY.fullmatch(entry.key.rsplit("/", 1)[-1]))

    def delete_leftover(self, name: str) -> None:
        self._place(name).unlink(missing_ok=True)

    def _place(self, key: str) -> Path:
        """Where an object lies.

        Raises:
            StoreError: a symbolic link leads out of the store.
        """
        place = self.root / key
        if not self._inside(place):
            raise StoreError(
                f"{key!r} leads out of the store {self.root}, to {os.path.realpath(place)}: a symbolic link is on its "
                "way; remove the link, and move what it points to into the store"
            )
        return place

    def _inside(self, place: Path) -> bool:
        root = os.path.realpath(self.root)  # the store itself may well be a link
        return os.path.commonpath([root, os.path.realpath(place)]) == root

    def _walk(self, folder: str) -> Iterator[tuple[str, os.DirEntry[str]]]:
        """All files below a folder. Links to folders are not followed; links that lead out, or nowhere, are no objects.

        A folder that is gone or was never made is empty; one that may not be read is an error.
        """
        waiting = [folder]
        while waiting:
            here = waiting.pop()
            try:
                with os.scandir(self._place(here) if here else self.root) as found:
                    names = [*found]
            except (FileNotFoundError, NotADirectoryError):
                continue
            for entry in names:
                key = f"{here}/{entry.name}" if here else entry.name
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(key)
                elif entry.is_symlink() and not (entry.is_file() and self._inside(Path(entry.path))):
                    continue
                elif not entry.is_dir():
                    yield key, entry

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
