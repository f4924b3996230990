"""`ew keys`: named API keys of the proxy."""

from __future__ import annotations

from typing import Any

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cli.output import emit, json_option, report_errors
from common.errors import UsageError
from common.paths import home
from proxy.keys import ROLES, ApiKey, KeyStore


@click.group("keys")
def command() -> None:
    """Add, list, rotate and revoke API keys; a running proxy sees every change at once.

    \b
    Examples:
      ./ew keys add alice
      ./ew keys add ops --role admin
      ./ew keys rotate alice
    """


@command.command("add")
@click.argument("name")
@click.option("--role", type=click.Choice(ROLES), default="inference", show_default=True)
@click.option("--requests-per-minute", type=click.IntRange(min=1), help="Refuse more with 429.")
@click.option("--max-concurrent", type=click.IntRange(min=1), help="Requests at once.")
@json_option
@report_errors
def add(
    name: str, role: str, requests_per_minute: int | None, max_concurrent: int | None, as_json: bool
) -> None:
    """Make a key and show it; it cannot be shown again.

    \b
    Examples:
      ./ew keys add alice --requests-per-minute 60 --max-concurrent 8
      ./ew keys add ops --role admin
    """
    _refuse_name(name)
    limits = {"requests_per_minute": requests_per_minute, "max_concurrent": max_concurrent}
    _show_secret(name, _store().add(name, role, **limits), as_json=as_json)


@command.command("list")
@json_option
@report_errors
def list_keys(as_json: bool) -> None:
    """Show names, roles and limits; never the keys.

    \b
    Example:
      ./ew keys list
    """
    keys = [_describe(key) for key in _store().records()]
    emit({"keys": keys}, as_json=as_json, text=None if keys else "There are no keys yet.")
    if keys and not as_json:
        Console(highlight=False).print(_table(keys))


@command.command("rotate")
@click.argument("name")
@json_option
@report_errors
def rotate(name: str, as_json: bool) -> None:
    """Replace the key of that name; the old one stops working at once.

    \b
    Example:
      ./ew keys rotate alice
    """
    _show_secret(name, _store().rotate(name), as_json=as_json)


@command.command("revoke")
@click.argument("name")
@json_option
@report_errors
def revoke(name: str, as_json: bool) -> None:
    """Remove the key of that name; it stops working at once.

    \b
    Example:
      ./ew keys revoke alice
    """
    _store().revoke(name)
    emit({"revoked": name}, as_json=as_json, text=f"The key {name} is revoked.")


def _refuse_name(name: str) -> None:
    """Names stand in lists and logs: one line that can be seen."""
    if not name or not name.isprintable() or name != name.strip():
        raise UsageError(f"{name!r} cannot be a key's name.", hint="Give one such as alice, in one line.")


def _store() -> KeyStore:
    return KeyStore(home().keys)


def _describe(key: ApiKey) -> dict[str, Any]:
    return {
        "name": key.name,
        "role": key.role,
        "created": key.created,
        "requests_per_minute": key.requests_per_minute,
        "max_concurrent": key.max_concurrent,
    }


def _table(keys: list[dict[str, Any]]) -> Table:
    table = Table("name", "role", "a minute", "at once", "created", box=None, pad_edge=False)
    for key in keys:
        limits = (key[name] for name in ("requests_per_minute", "max_concurrent"))
        shown = ("-" if limit is None else str(limit) for limit in limits)
        table.add_row(escape(key["name"]), key["role"], *shown, key["created"])
    return table


def _show_secret(name: str, secret: str, *, as_json: bool) -> None:
    text = f"{secret}\n\nThis is the key {name}. Keep it: it cannot be shown again."
    emit({"name": name, "key": secret}, as_json=as_json, text=text)
