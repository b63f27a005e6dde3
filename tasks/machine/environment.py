"""What this process and its children take from the environment: proxies, and how long servers may keep us waiting."""

from __future__ import annotations

import ipaddress
from collections.abc import MutableMapping
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from urllib.request import OpenerDirector

# httpx goes by whole names, urllib by suffixes, requests by networks too: each finds an entry that it understands.
LOOPBACK = ("localhost", "127.0.0.1", "127.0.0.0/8", "::1")
PROXIES = ("http_proxy", "https_proxy", "all_proxy")
ADDRESSES = ("PREFECT_API_URL", "MLFLOW_TRACKING_URI")
# By default a request of Prefect's client takes up to a minute and is tried six times.
PATIENCE = {"PREFECT_API_REQUEST_TIMEOUT": "15", "PREFECT_CLIENT_MAX_RETRIES": "2"}


def prepare(environment: MutableMapping[str, str]) -> None:
    """Exempts loopback from proxies and bounds Prefect's waiting; what you set stands.

    Args:
        environment: ``os.environ``; the children of this process get it too.
    """
    for name, value in PATIENCE.items():
        environment.setdefault(name, value)
    # Where no variable names a proxy, a variable that names exemptions would switch off those of the system.
    if any(environment.get(name) or environment.get(name.upper()) for name in PROXIES):
        lower, upper = environment.get("no_proxy"), environment.get("NO_PROXY")
        here = [host for name in ADDRESSES if is_loopback(host := _host(environment.get(name, "")))]
        environment["no_proxy"] = _exempt(lower or upper or "", here)
        environment["NO_PROXY"] = _exempt(upper or lower or "", here)


def is_loopback(host: str) -> bool:
    """Whether a host's name or address means this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def opener(url: str) -> OpenerDirector:
    """What opens ``url``: through the user's proxy, but not to this machine."""
    from urllib.request import ProxyHandler, build_opener

    return build_opener(ProxyHandler({} if is_loopback(_host(url)) else None))


def _host(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


def _exempt(hosts: str, here: list[str]) -> str:
    """The hosts that were given, and loopback's where they are not among them."""
    given = [one.strip() for one in hosts.split(",") if one.strip()]
    more = [] if "*" in given else dict.fromkeys([*LOOPBACK, *here])
    return ",".join([*given, *(one for one in more if one not in given)])
