"""`t2v store`: what a store needs after its first day, for people."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from flows._cli_options import StoreOption

if TYPE_CHECKING:
    from flows._store import Store

__all__ = ["counted", "opened", "seconds", "size", "store_app"]

store_app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="""Look after a store: what is in it, whether it is whole, what nobody needs any more.

Begin with **t2v store --store URL info**. Nothing is deleted or changed unless **gc --delete** or **upgrade --apply**
says so.
""",
)
out = Console(highlight=False)
err = Console(stderr=True, highlight=False)

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


@store_app.callback()
def store_callback(
    context: typer.Context,
    store: StoreOption = "",
    name: Annotated[str, typer.Option("--name", help="Name of the run whose store is meant.")] = "demo",
) -> None:
    """Open the store."""
    context.obj = (store, name)


def opened(context: typer.Context) -> Store:
    """The store that the options name."""
    from flows._settings import store_url
    from flows._store import Store

    return Store(store_url(*context.obj))


def size(n: float) -> str:
    """Bytes for people."""
    for unit in ("B", "kB", "MB", "GB"):
        if n < 1000:
            return f"{n:.0f} {unit}" if unit == "B" else f"{n:.1f} {unit}"
        n /= 1000
    return f"{n:.1f} TB"


def seconds(text: str) -> float:
    """A duration such as ``7d``, ``12h``, ``30m`` or ``45s``.

    Raises:
        ConfigError: it is none.
    """
    from t2v_core.errors import ConfigError

    number, unit = text[:-1], text[-1:]
    if unit not in _UNITS or not number.replace(".", "", 1).isdigit():
        raise ConfigError(f"{text!r} is no duration; wanted a number and s, m, h or d, such as 7d")
    return float(number) * _UNITS[unit]


@contextmanager
def counted(what: str) -> Iterator[Callable[[int, int], None]]:
    """A line on the terminal that counts."""
    with err.status(f"{what} ...") as status:
        yield lambda done, total: status.update(f"{what}: {done} of {total}")


@store_app.command()
def info(context: typer.Context) -> None:
    """Objects and bytes by kind, version, configs, and who is at work."""
    from flows._activity import marks
    from flows._format import store_version
    from flows._reach import kind_of

    place = opened(context)
    form, schema = store_version(place)
    entries = place.entries()
    out.print(f"{escape(place.url)}: format {form}, schema {schema}", soft_wrap=True)
    table = Table()
    for column in ("kind", "objects", "size", "newest"):
        table.add_column(column, justify="left" if column == "kind" else "right")
    kinds: dict[str, list[int]] = {}
    newest: dict[str, float] = {}
    for entry in entries:
        kind = kind_of(entry.key)
        kinds.setdefault(kind, []).append(entry.size)
        newest[kind] = max(newest.get(kind, 0.0), entry.modified)
    for kind in sorted(kinds, key=lambda k: -sum(kinds[k])):
        table.add_row(kind, f"{len(kinds[kind]):,}", size(sum(kinds[kind])), _date(newest[kind]))
    table.add_row("all", f"{len(entries):,}", size(sum(e.size for e in entries)), "", style="bold")
    out.print(table)
    configs = sorted({e.key.split("/")[1] for e in entries if e.key.startswith("latest/")})
    out.print(f"configs: {escape(', '.join(configs)) or 'none'}", soft_wrap=True)
    if any(e.key.startswith("activity/") for e in entries):
        import time

        for mark in marks(place, now=time.time()):
            word = "at work" if mark.alive else "dead"
            out.print(f"{word}: {escape(mark.said)}, last heard of {mark.age:.0f} s ago", soft_wrap=True)


def _date(when: float) -> str:
    import time

    return time.strftime("%Y-%m-%d %H:%M", time.gmtime(when))


@store_app.command()
def gc(
    context: typer.Context,
    delete: Annotated[bool, typer.Option("--delete", help="Do it; without, it is only said.")] = False,
    grace: Annotated[
        str, typer.Option(help="Keep what is younger, whoever refers to it: a number and s, m, h or d.")
    ] = "7d",
    keep: Annotated[
        list[str] | None, typer.Option(help="Pattern of keys that stay, e.g. 'features/*'; several times for more.")
    ] = None,
    verbose: Annotated[bool, typer.Option("--verbose", help="List every object or folder.")] = False,
) -> None:
    """Say which objects nothing refers to, or delete them; rows of datasets whose units are gone go too."""
    from flows._collect import collect, find_garbage
    from flows._format import check_format

    place, age = opened(context), seconds(grace)
    check_format(place)
    if delete:
        with counted("deleting") as counting:
            garbage = collect(place, age, keep or [], counting)
    else:
        garbage = find_garbage(place, age, keep or [])
    for note in garbage.notes:
        err.print(f"[yellow]{escape(note)}[/yellow]", soft_wrap=True)
    word = "deleted" if delete else "would go"
    out.print(f"{escape(place.url)}: {word}", soft_wrap=True)
    table = Table()
    for column in ("kind", "objects", "size"):
        table.add_column(column, justify="left" if column == "kind" else "right")
    for kind, (count, n) in garbage.by_kind().items():
        table.add_row(kind, f"{count:,}", size(n))
    if garbage.leftovers:
        table.add_row(
            "left by killed writers", f"{len(garbage.leftovers):,}", size(sum(e.size for e in garbage.leftovers))
        )
    table.add_row("all", f"{garbage.objects + len(garbage.leftovers):,}", size(garbage.bytes), style="bold")
    out.print(table)
    if verbose:
        for group, members in sorted(garbage.groups.items()):
            out.print(
                f"  {escape(group)}  {len(members)} objects, {size(sum(e.size for e in members))}", soft_wrap=True
            )
    for dataset, rows in garbage.rows.items():
        if rows:
            out.print(f"{dataset}: {rows} rows {word}, as their units")
    out.print(
        f"{garbage.kept:,} objects stay ({size(garbage.kept_bytes)}); nothing refers to {garbage.young:,} more "
        f"({size(garbage.young_bytes)}), which are younger than {grace} or to be kept.",
        soft_wrap=True,
    )
    if not delete and garbage.objects + len(garbage.leftovers):
        out.print("Nothing was deleted; --delete does it.")


@store_app.command("forget")
def forget_config(
    context: typer.Context,
    config: Annotated[str, typer.Argument(metavar="NAME", help="Name of a config that is no longer run.")],
    delete: Annotated[bool, typer.Option("--delete", help="Do it; without, it is only said.")] = False,
) -> None:
    """Drop a config's pointers, results and registrations; **gc** then takes what only it needed."""
    from flows._collect import forget
    from flows._format import check_format

    place = opened(context)
    check_format(place)
    for key in forget(place, config, delete=delete):
        out.print(f"  {escape(key)}", soft_wrap=True)
    out.print(
        "deleted; `t2v store gc` says what nobody needs now" if delete else "Nothing was deleted; --delete does it."
    )


@store_app.command()
def check(
    context: typer.Context,
    full: Annotated[bool, typer.Option("--full", help="Read every byte, and compare digests.")] = False,
) -> None:
    """See that all that is referred to is there and readable, and name what is half-made. Exit status 1 where not."""
    from flows._check import check_store
    from flows._format import check_format

    place = opened(context)
    check_format(place)
    with counted("reading") as told:
        checked = check_store(place, full=full, progress=told)
    for what, who in checked.missing:
        out.print(f"[red]missing[/red] {escape(what)}, named by {escape(who)}", soft_wrap=True)
    for key, reason in checked.damaged:
        out.print(f"[red]damaged[/red] {escape(key)}: {escape(reason)}", soft_wrap=True)
    for what, how in checked.unfinished:
        out.print(f"[yellow]unfinished[/yellow] {escape(what)}: {escape(how)}", soft_wrap=True)
    for note in checked.notes:
        out.print(f"[yellow]note[/yellow] {escape(note)}", soft_wrap=True)
    read = "read" if full else "opened"
    out.print(
        f"{checked.objects:,} objects {read}, {size(checked.bytes)}: {len(checked.missing)} missing, "
        f"{len(checked.damaged)} damaged, {len(checked.unfinished)} unfinished.",
        soft_wrap=True,
    )
    if not checked.whole:
        out.print("Delete what is damaged, and run the pipeline again: it makes what is missing. Or restore a backup.")
        raise typer.Exit(1)


@store_app.command("upgrade")
def upgrade_store(
    context: typer.Context,
    apply: Annotated[bool, typer.Option("--apply", help="Do it; without, it is only said.")] = False,
) -> None:
    """Say what would take the store to this version of t2v, or do it. Back it up first."""
    from flows._activity import alone
    from flows._format import FORMAT, upgrade

    place = opened(context)
    if apply:
        with alone(place, "t2v store upgrade"):
            lines = upgrade(place, apply=True)
    else:
        lines = upgrade(place, apply=False)
    for line in lines:
        out.print(escape(line), soft_wrap=True)
    if not lines:
        out.print(f"Nothing to do: {escape(place.url)} is of format {FORMAT}.", soft_wrap=True)
    elif not apply:
        out.print("Nothing was changed; --apply does it.")
