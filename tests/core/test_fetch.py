"""Fetching data: with clients made here for what may go wrong, and once for real where npm works."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import shutil
import subprocess
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest
from test_sources_emoji import write_emoji

from t2v_core import fetch as module
from t2v_core.errors import SourceError, UnknownNameError
from t2v_core.fetch import FETCHES, Fetch, fetch
from t2v_core.sources import open_source

SYSTEM = "/usr/bin:/bin"


def client(folder: Path, name: str, script: str) -> None:
    """A program of that name."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\necho \"$@\" >> '{folder}/{name}.log'\n{script}\n")
    (folder / name).chmod(0o755)


def asked(folder: Path, name: str) -> list[str]:
    log = folder / f"{name}.log"
    return log.read_text().splitlines() if log.exists() else []


def archive(path: Path, files: dict[str, bytes | tarfile.TarInfo]) -> str:
    """A .tgz of regular files, or of members as they stand; its digest."""
    with tarfile.open(path, "w:gz") as out:
        for name, data in files.items():
            if isinstance(data, tarfile.TarInfo):
                data.name = name
                out.addfile(data)
            else:
                member = tarfile.TarInfo(name)
                member.size = len(data)
                out.addfile(member, io.BytesIO(data))
    return base64.b64encode(hashlib.sha512(path.read_bytes()).digest()).decode()


@pytest.fixture
def bin_(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{SYSTEM}")
    return folder


@pytest.fixture
def npm(bin_: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An npm that packs the three small packages of the emoji tests, and digests to match; the folder of archives."""
    packed = tmp_path / "packed"
    packed.mkdir()
    write_emoji(tmp_path / "made")
    packages = []
    for package in module._EMOJI_PACKAGES:
        made = tmp_path / "made" / package.name
        for name in ("package.json", "LICENSE", "README.md"):
            (made / name).write_text("{}")
        files = {f"package/{p.relative_to(made)}": p.read_bytes() for p in sorted(made.rglob("*")) if p.is_file()}
        files["package/img/google/sheets/64.png"] = b"large"
        packages.append(replace(package, sha512=archive(packed / f"{package.name}-{package.version}.tgz", files)))
    monkeypatch.setattr(module, "_EMOJI_PACKAGES", tuple(packages))
    client(bin_, "npm", f'name=$(echo "$2" | tr @ -); cp \'{packed}/\'"$name.tgz" . && echo "$name.tgz"')
    return packed


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def test_fetched_emoji_are_a_source(npm: Path, bin_: Path, tmp_path: Path) -> None:
    root = fetch("emoji", tmp_path / "data")
    assert root == tmp_path / "data" / "emoji"
    assert left(tmp_path / "data") == ["emoji"]
    assert left(root) == ["emoji-datasource-google", "emoji-datasource-twitter", "emojilib", "fetched.json"]
    source = open_source("emoji_set", set="google", root=root)
    source.check_images()
    assert source.read(source.annotations()["locator"][0].as_py())[:4] == b"\x89PNG"
    assert not (root / "emoji-datasource-google" / "img" / "google" / "sheets").exists()  # not needed
    said = asked(bin_, "npm")
    assert [line.split()[:2] for line in said] == [
        ["pack", "emoji-datasource-google@16.0.0"],
        ["pack", "emoji-datasource-twitter@16.0.0"],
        ["pack", "emojilib@4.0.3"],
    ]
    assert all("--ignore-scripts" in line for line in said)


def test_what_is_there_is_left(npm: Path, bin_: Path, tmp_path: Path) -> None:
    root = fetch("emoji", tmp_path)
    (root / "notes.txt").write_text("mine")
    assert fetch("emoji", tmp_path) == root
    assert len(asked(bin_, "npm")) == 3
    assert (root / "notes.txt").exists()


def test_damage_is_mended(npm: Path, bin_: Path, tmp_path: Path) -> None:
    root = fetch("emoji", tmp_path)
    image = root / "emoji-datasource-google" / "img" / "google" / "64" / "1f436.png"
    image.unlink()
    assert fetch("emoji", tmp_path) == root
    assert image.exists()
    assert len(asked(bin_, "npm")) == 6
    (root / "fetched.json").write_text('{"packages": ["emojilib@1.0.0"], "files": 1}')  # of an older t2v
    fetch("emoji", tmp_path)
    assert len(asked(bin_, "npm")) == 9
    assert "emoji-datasource-google@16.0.0" in (root / "fetched.json").read_text()


@pytest.mark.parametrize("record", [None, "{", "[]", '{"packages": []}', "\x00"])
def test_a_folder_of_something_else_is_left(npm: Path, bin_: Path, tmp_path: Path, record: str | None) -> None:
    (tmp_path / "emoji").mkdir()
    (tmp_path / "emoji" / "mine.png").write_bytes(b"mine")
    if record is not None:
        (tmp_path / "emoji" / "fetched.json").write_text(record)
    before = left(tmp_path / "emoji")
    with pytest.raises(SourceError, match=r"was not fetched .*move it away, or name another folder"):
        fetch("emoji", tmp_path)
    assert left(tmp_path / "emoji") == before
    assert asked(bin_, "npm") == []


def test_an_empty_folder_is_filled(npm: Path, tmp_path: Path) -> None:
    (tmp_path / "emoji").mkdir()
    assert (fetch("emoji", tmp_path) / "fetched.json").exists()


def test_a_wrong_digest(npm: Path, tmp_path: Path) -> None:
    with (npm / "emojilib-4.0.3.tgz").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(SourceError, match=r"emojilib@4\.0\.3 has the digest sha512-\S+, wanted sha512-\S+: not what"):
        fetch("emoji", tmp_path / "data")
    assert left(tmp_path / "data") == []  # nothing is half there


def test_a_failed_mend_leaves_what_was_there(npm: Path, bin_: Path, tmp_path: Path) -> None:
    root = fetch("emoji", tmp_path / "data")
    (root / "emojilib" / "LICENSE").unlink()
    client(bin_, "npm", "exit 1")
    with pytest.raises(SourceError, match="it said nothing"):
        fetch("emoji", tmp_path / "data")
    assert left(tmp_path / "data") == ["emoji"]
    assert (root / "emoji-datasource-google" / "emoji.json").exists()


def test_the_network_is_down(bin_: Path, tmp_path: Path) -> None:
    client(bin_, "npm", "echo 'npm error code ENOTFOUND' >&2; echo 'npm error network' >&2; exit 1")
    with pytest.raises(SourceError) as caught:
        fetch("emoji", tmp_path / "data")
    message = str(caught.value)
    assert f"cannot fetch emoji into {tmp_path / 'data' / 'emoji'}" in message
    assert (
        "`npm pack emoji-datasource-google@16.0.0` failed (1): npm error code ENOTFOUND | npm error network" in message
    )
    assert "it needs the network" in message
    assert "emoji_set and openmoji with the option `root:`" in message
    assert "emojilib@4.0.3" in message
    assert left(tmp_path / "data") == []


def test_no_client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SourceError, match=r"npm is not on the PATH; install Node\.js.*`root:`"):
        fetch("emoji", tmp_path / "data")
    for what, option in (("stamps", "`path:`"), ("fashion-mnist", "`root:`")):
        with pytest.raises(SourceError, match=rf"apt-get is not on the PATH; this takes Debian.*{option}"):
            fetch(what, tmp_path / "data")


def test_a_client_that_hangs(bin_: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client(bin_, "npm", "exec sleep 60")
    monkeypatch.setattr(module, "_SECONDS", 0.2)
    with pytest.raises(SourceError, match=r"was not done after 0\.2 seconds"):
        fetch("emoji", tmp_path / "data")


@pytest.mark.parametrize("script", ["true", "touch a.tgz b.tgz"])
def test_another_program_of_that_name(bin_: Path, tmp_path: Path, script: str) -> None:
    client(bin_, "npm", script)
    with pytest.raises(SourceError, match=r"npm left [02] files \*\.tgz, wanted one"):
        fetch("emoji", tmp_path / "data")


def link(target: str) -> tarfile.TarInfo:
    member = tarfile.TarInfo("x")
    member.type = tarfile.SYMTYPE
    member.linkname = target
    return member


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"package/dist/../../../../evil.txt": b"x"}, "outside"),
        ({"package/dist/emoji-en-US.json": link("/etc/passwd")}, "holds no package.json"),
        ({"package/package.json": b"{}"}, "emojilib@4.0.3 holds no LICENSE"),
    ],
)
def test_archives_that_would_leave_the_folder(
    npm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, bytes | tarfile.TarInfo], message: str
) -> None:
    digest = archive(npm / "emojilib-4.0.3.tgz", files)
    packages = [replace(p, sha512=digest) if p.name == "emojilib" else p for p in module._EMOJI_PACKAGES]
    monkeypatch.setattr(module, "_EMOJI_PACKAGES", tuple(packages))
    with pytest.raises(SourceError, match=message):
        fetch("emoji", tmp_path / "data")
    assert not list(tmp_path.rglob("evil.txt"))
    assert left(tmp_path / "data") == []


def test_not_an_archive(npm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (npm / "emojilib-4.0.3.tgz").write_bytes(b"<html>")
    digest = base64.b64encode(hashlib.sha512(b"<html>").digest()).decode()
    packages = [replace(p, sha512=digest) if p.name == "emojilib" else p for p in module._EMOJI_PACKAGES]
    monkeypatch.setattr(module, "_EMOJI_PACKAGES", tuple(packages))
    with pytest.raises(SourceError, match="cannot fetch emoji"):
        fetch("emoji", tmp_path / "data")


def test_a_folder_that_cannot_be_written(npm: Path, tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file")
    with pytest.raises(SourceError, match=r"cannot fetch emoji into .*(File exists|Not a directory)"):
        fetch("emoji", tmp_path / "data")


def test_names() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown fetch 'emojis'; did you mean 'emoji'\?"):
        fetch("emojis")
    for name in FETCHES:
        entry = FETCHES[name]
        assert isinstance(entry, Fetch)
        assert entry.about
        assert entry.licence
        assert entry.megabytes > 0
        assert entry.packages


# --- Debian -------------------------------------------------------------------------------------------------------


@pytest.fixture
def apt(bin_: Path, tmp_path: Path) -> Path:
    """An apt that finds packages which it makes of the folder ``debian/NAME``; that folder."""
    if shutil.which("dpkg-deb") is None:
        pytest.skip("dpkg-deb is not on this machine")
    made = tmp_path / "debian"
    script = f"""
d='{made}/'"$2"
[ -d "$d" ] || {{ echo "E: Unable to locate package $2" >&2; exit 100; }}
mkdir -p "$d/DEBIAN" && printf 'Package: %s\\nVersion: 1\\nArchitecture: all\\nMaintainer: x\\nDescription: x\\n' "$2" > "$d/DEBIAN/control"
dpkg-deb -b "$d" "$2_1_all.deb" >/dev/null"""
    client(bin_, "apt-get", script)
    return made


def put(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())


def test_stamps(apt: Path, bin_: Path, tmp_path: Path) -> None:
    tree = apt / "tuxpaint-stamps-default"
    below = "usr/share/tuxpaint/stamps"
    put(tree, *(f"{below}/animals/birds/{i}.png" for i in range(100)), f"{below}/animals/birds/1_desc_de.ogg")
    put(tree, "usr/share/doc/tuxpaint-stamps-default/copyright")
    (tree / below / "animals" / "link.png").symlink_to("/etc/passwd")
    root = fetch("stamps", tmp_path / "data")
    assert left(root) == ["animals", "copyright", "fetched.json"]
    assert len(left(root / "animals" / "birds")) == 100
    assert not (root / "animals" / "link.png").exists()
    assert open_source("folder", path=root).annotations()["label"].unique().to_pylist() == ["animals/birds"]
    assert fetch("stamps", tmp_path / "data") == root
    assert asked(bin_, "apt-get") == ["download tuxpaint-stamps-default"]
    assert left(tmp_path / "data") == ["stamps"]


def test_a_package_without_what_is_wanted(apt: Path, tmp_path: Path) -> None:
    put(apt / "dataset-fashion-mnist", "usr/share/datasets/fashion-mnist/train-images-idx3-ubyte.gz")
    with pytest.raises(SourceError, match=r"holds 1 files .*-ubyte\.gz, wanted 4"):
        fetch("fashion-mnist", tmp_path / "data")
    assert left(tmp_path / "data") == []


def test_lists_were_never_fetched(apt: Path, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"Unable to locate package.*run apt-get update first.*`path:`"):
        fetch("stamps", tmp_path / "data")


def test_a_damaged_package(apt: Path, bin_: Path, tmp_path: Path) -> None:
    client(bin_, "apt-get", "echo no > x_1_all.deb")
    with pytest.raises(SourceError, match=r"`dpkg-deb -x .*failed \(2\).*fetch it again"):
        fetch("stamps", tmp_path / "data")


# --- for real -----------------------------------------------------------------------------------------------------


def test_for_real(tmp_path: Path) -> None:
    """The smallest package alone, so that it takes a second; left out where npm reaches nothing."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("npm is not on this machine")
    [package] = [p for p in module._EMOJI_PACKAGES if p.name == "emojilib"]
    question = [npm, "view", f"emojilib@{package.version}", "version", "--fetch-retries=0", "--fetch-timeout=5000"]
    try:
        reached = subprocess.run(question, cwd=tmp_path, capture_output=True, timeout=20).returncode == 0
    except subprocess.TimeoutExpired:
        reached = False
    if not reached:
        pytest.skip("npm reaches no registry")
    module._unpack_npm(package, tmp_path / "work", tmp_path / "out")
    assert len(json.loads((tmp_path / "out" / "dist" / "emoji-en-US.json").read_text())) == 1914
