from __future__ import annotations

import os
import urllib.request

import pytest

from tasks.machine.environment import opener, prepare

PROXY = "http://127.0.0.1:9"  # nobody answers there


@pytest.fixture
def behind_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "intern.example")  # monkeypatch takes back what prepare changes
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, PROXY)
    for name in ("PREFECT_API_REQUEST_TIMEOUT", "PREFECT_CLIENT_MAX_RETRIES"):
        monkeypatch.setenv(name, "7")
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.7:4200/api")
    prepare(os.environ)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.0.0.7", "[::1]", "intern.example", "far.example"])
def test_loopback_is_exempt_from_the_proxy_for_every_client(behind_a_proxy: None, host: str) -> None:
    """httpx (Prefect), requests (MLflow) and urllib (our own checks) reach this machine; others go by the proxy."""
    import httpx
    import requests

    url, direct = f"http://{host}:5000/health", host != "far.example"
    with httpx.Client() as client:
        assert (client._transport_for_url(httpx.URL(url)) is client._transport) == direct
    assert (requests.utils.get_environ_proxies(url) == {}) == direct
    handlers = [one for one in opener(url).handlers if isinstance(one, urllib.request.ProxyHandler)]
    bypassed = not any(one.proxies for one in handlers) or bool(urllib.request.proxy_bypass(f"{host}:5000"))
    assert bypassed == direct


def test_what_the_user_set_stands(behind_a_proxy: None) -> None:
    """Exemptions are added to the user's; patience that somebody chose stays; a second time changes nothing."""
    before = dict(os.environ)
    assert before["NO_PROXY"].startswith("intern.example,") and before["PREFECT_CLIENT_MAX_RETRIES"] == "7"
    prepare(os.environ)
    assert dict(os.environ) == before


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({}, {}),
        ({"HTTP_PROXY": PROXY, "NO_PROXY": "*"}, {"no_proxy": "*", "NO_PROXY": "*"}),
        ({"no_proxy": "a"}, {"no_proxy": "a"}),
    ],
)
def test_exemptions_are_written_only_where_they_are_needed(given: dict[str, str], wanted: dict[str, str]) -> None:
    """Without a proxy nothing is written (it would switch off the system's own); ``*`` exempts everything already."""
    prepare(environment := dict(given))
    assert {name: value for name, value in environment.items() if name.lower() == "no_proxy"} == wanted
    assert float(environment["PREFECT_API_REQUEST_TIMEOUT"]) <= 15
