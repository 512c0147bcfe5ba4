"""A manifest as it lies on disk, CSV or Parquet: its columns, and where in the file a row is."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pcsv
import pyarrow.parquet as pq

from t2v_core.errors import SourceError
from t2v_core.fingerprints import digest_bytes
from t2v_core.sources._columns import is_listed, is_text

__all__ = ["ManifestFile", "csv_rows", "fail", "image_column", "read_bytes"]

_BEGINNINGS = {
    b"version https://git-lfs": "a Git LFS pointer, not the file itself; fetch it with `git lfs pull`",
    b"PK\x03\x04": "a ZIP archive or a spreadsheet; save the table as CSV (UTF-8), or unpack the archive",
    b"\x1f\x8b": "compressed with gzip; unpack it",
    b"\xff\xfe": "text in UTF-16; save it as UTF-8",
    b"\xfe\xff": "text in UTF-16; save it as UTF-8",
    b"ARROW1": "an Arrow file; save it as Parquet",
}


def fail(where: object, what: str) -> SourceError:
    """The error of a manifest, with its place."""
    return SourceError(f"manifest: {where}: {what}")


def read_bytes(path: Path) -> bytes:
    """A whole file.

    Raises:
        SourceError: it cannot be read, or is empty.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise fail(path, f"cannot read it: {error.strerror or error}; wanted a CSV or Parquet file") from error
    if not data.strip():
        raise fail(path, f"the file is empty ({len(data)} bytes); write it again")
    return data


def csv_rows(data: bytes, path: Path, delimiter: str = ",") -> Iterator[tuple[int, list[str]]]:
    """The records of a CSV one by one, with the line that each begins on; blank lines are passed over.

    Raises:
        SourceError: it is not UTF-8, or a quote is not closed.
    """
    try:
        content = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise fail(f"{path}:{line}", f"not UTF-8: byte 0x{data[error.start]:02x}; save the file as UTF-8") from None
    reader = csv.reader(io.StringIO(content, newline=""), delimiter=delimiter, strict=True)
    while True:
        line = reader.line_num + 1
        try:
            record = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            message = f"{error}: a quote that is not closed, or the file is cut short; mend it, or fetch it again"
            raise fail(f"{path}:{line}", message) from None
        if record:
            yield line, record


@dataclass(frozen=True, eq=False)
class ManifestFile:
    """The columns of a manifest that may hold labels or paths, and what is known of the others."""

    path: Path
    table: pa.Table
    digest: str
    """Of the file's bytes."""
    images: frozenset[str]
    """Parquet columns that hold images: bytes, or structs of bytes and path."""
    other: Mapping[str, pa.DataType]
    """Columns of types that cannot be labels, images among them; they were not read."""
    class_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Columns of numbered classes, as Hugging Face writes them, to the names of the classes."""
    delimiter: str = ""
    """Of a CSV."""

    @classmethod
    def read(cls, path: Path) -> ManifestFile:
        """Read a file; what it is is told by its first bytes.

        Raises:
            SourceError: it is not there, empty, cut short, or neither CSV nor Parquet.
        """
        try:
            with path.open("rb") as file:
                start = file.read(32)
        except OSError as error:
            message = f"cannot read it: {error.strerror or error}; wanted a CSV or Parquet file"
            raise fail(path, message) from error
        for beginning, what in _BEGINNINGS.items():
            if start.startswith(beginning):
                raise fail(path, what)
        if start.startswith(b"PAR1"):
            return cls._parquet(path)
        if path.suffix.lower() in (".parquet", ".pq"):
            raise fail(path, f"not Parquet: it begins with {start[:8]!r}, wanted b'PAR1'; fetch or write it again")
        return cls._csv(path)

    @classmethod
    def _csv(cls, path: Path) -> ManifestFile:
        data = read_bytes(path)
        delimiter = "\t" if path.suffix.lower() in (".tsv", ".tab") else ","
        if b"\0" in data[:4096]:
            raise fail(path, "it holds zero bytes: UTF-16, or no text at all; save the table as CSV in UTF-8")
        if data.count(b'"') % 2:  # pyarrow would take the rest of the file for one value
            for _ in csv_rows(data, path, delimiter):
                pass
        # The first lines are enough for the header.
        line, header = next(csv_rows(data[: data.rfind(b"\n", 0, 2**20) + 1] or data, path, delimiter))
        names = _header(header, f"{path}:{line}", delimiter)
        options = pcsv.ConvertOptions(
            column_types=dict.fromkeys(header, pa.string()), strings_can_be_null=True, null_values=[""]
        )
        parse = pcsv.ParseOptions(delimiter=delimiter, newlines_in_values=True)
        try:
            table = pcsv.read_csv(pa.BufferReader(data), parse_options=parse, convert_options=options)
        except pa.ArrowInvalid as error:
            raise _csv_error(data, path, delimiter, str(error)) from None
        table = table.rename_columns(names).select([name for name in names if name])
        return cls(path, table, digest_bytes(data), frozenset(), {}, delimiter=delimiter)._with_rows()

    @classmethod
    def _parquet(cls, path: Path) -> ManifestFile:
        try:
            with pq.ParquetFile(path) as file:
                schema = file.schema_arrow
                names = [name for name in schema.names if not name.startswith("__index_level_")]
                _check_distinct(names, path)
                types = {name: schema.field(name).type for name in names}
                used = [name for name, kind in types.items() if _is_read(kind)]
                table = file.read(columns=used).select(used)
            with path.open("rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()[:16]
        except (pa.ArrowException, OSError) as error:
            raise fail(path, f"damaged Parquet, or cut short: {error}; fetch or write it again") from error
        images = frozenset(name for name, kind in types.items() if _is_image(kind))
        other = {name: kind for name, kind in types.items() if name not in used}
        return cls(path, table, digest, images, other, _class_names(schema))._with_rows()

    def _with_rows(self) -> ManifestFile:
        if len(self.table) == 0:
            raise fail(self.path, "it has columns and no rows; write it again")
        return self

    @property
    def columns(self) -> list[str]:
        """Names of all columns."""
        return [*self.table.column_names, *self.other]

    def where(self, row: int) -> str:
        """The place of a row, for errors: the line in a CSV, the number of the row in Parquet."""
        if not self.delimiter:
            return f"{self.path}: row {row + 1}"
        records = csv_rows(read_bytes(self.path), self.path, self.delimiter)
        return next((f"{self.path}:{line}" for line, _ in islice(records, row + 1, None)), str(self.path))


def _is_image(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0 and _is_image(kind.field("bytes").type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def image_column(path: Path, asked: str | None, usual: Sequence[str]) -> str:
    """The Parquet column that holds images, without reading the file; empty where images are files beside it."""
    with path.open("rb") as file:
        if file.read(4) != b"PAR1":
            return ""
    schema = pq.read_schema(path)
    name = asked or next((name for name in usual if name in schema.names), "")
    return name if name in schema.names and _is_image(schema.field(name).type) else ""


def _is_read(kind: pa.DataType) -> bool:
    number = pa.types.is_integer(kind) or pa.types.is_floating(kind)
    return is_text(kind) or is_listed(kind) or number or pa.types.is_boolean(kind) or pa.types.is_null(kind)


def _check_distinct(names: list[str], where: object) -> None:
    double = sorted({name for name in names if names.count(name) > 1 and name})
    if double:
        raise fail(where, f"two columns are named {double[0]!r}; rename one")


def _header(header: list[str], where: str, delimiter: str) -> list[str]:
    """The columns of a CSV without white space around their names; those without a name are left out later."""
    names = [name.strip() for name in header]
    if len(names) == 1:
        marks = {";": "semicolons", "\t": "tabs", ",": "commas", "|": "bars"}
        found = "".join(f"; it has {what}" for mark, what in marks.items() if mark in header[0])
        wanted = "tabs between columns, as a .tsv has" if delimiter == "\t" else "commas between columns"
        mend = "save it with commas as .csv, or with tabs as .tsv"
        raise fail(where, f"one column only, {header[0]!r:.80}{found}; wanted {wanted}; {mend}")
    _check_distinct(names, where)
    return names


def _csv_error(data: bytes, path: Path, delimiter: str, message: str) -> SourceError:
    """Where a CSV goes wrong: pyarrow says what, and seldom on which line."""
    records = list(csv_rows(data, path, delimiter))
    wanted = len(records[0][1])
    for number, (line, record) in enumerate(records):
        if len(record) != wanted:
            last = "; the last line: the file is cut short, fetch it again" if number == len(records) - 1 else ""
            mend = "quote values that hold the delimiter"
            return fail(
                f"{path}:{line}", f"{len(record)} values, wanted {wanted} as in the header{last or '; ' + mend}"
            )
    return fail(path, f"not a CSV: {message}; save it again")


def _class_names(schema: pa.Schema) -> dict[str, tuple[str, ...]]:
    """Names of numbered classes from the note that Hugging Face leaves in a schema; nothing where it is not one."""
    try:
        features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
        found = {
            name: feature.get("feature", feature) for name, feature in features.items() if isinstance(feature, dict)
        }
        classes = {n: f["names"] for n, f in found.items() if isinstance(f, dict) and f.get("_type") == "ClassLabel"}
        return {name: tuple(map(str, names)) for name, names in classes.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}
