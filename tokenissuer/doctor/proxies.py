"""What proxies on the way to the realm do with requests: tried, not assumed."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from tokenissuer.diagnosis import Finding, Severity
from tokenissuer.doctor.caller import Unreachable
from tokenissuer.doctor.facts import Facts, Outcome
from tokenissuer.doctor.probe import (
    LONG_HEADER,
    LONG_QUERY,
    Arrival,
    Prober,
    Unanswered,
    claimed_through,
)
from tokenissuer.net import parse_address


def check_proxies(facts: Facts) -> Outcome:
    """Send the requests that some proxies refuse or change."""
    prober, arrival = facts.prober, facts.arrival
    if prober is None or arrival is None:
        return Outcome(skipped="the realm does not end here, or it cannot be told, see above")
    found = [
        *_credential_findings(prober, facts.realm),
        *_form_findings(prober, facts),
        *_length_findings(prober, facts.realm),
        *_address_findings(prober, arrival, facts),
    ]
    content = arrival.content
    path = f"{content['script_name']}{content['path_info']}"
    between = "behind a proxy" if arrival.is_proxied else "with nothing between"
    return Outcome(
        found,
        f"{between}; path {path}, Host {content['host']}, client {content['client'] or 'unknown'}; forms, chunks, long "
        "headers and queries arrive",
    )


def _credential_findings(prober: Prober, realm: str) -> Iterator[Finding]:
    refusal = _refusal(prober.authorized)
    if not isinstance(refusal, Arrival):
        yield Finding(
            Severity.ERROR,
            realm,
            f"a request with a password does not arrive: {refusal}",
            "take any login of the proxy's own away from the realm's path",
        )
    elif not refusal.content["authorization_length"]:
        yield Finding(
            Severity.ERROR,
            realm,
            "the header Authorization does not arrive, so every password is lost and everybody is nobody",
            "Apache with mod_wsgi: WSGIPassAuthorization On; other proxies: pass on Authorization "
            "(nginx: proxy_set_header Authorization $http_authorization)",
        )


def _form_findings(prober: Prober, facts: Facts) -> Iterator[Finding]:
    refusal = _refusal(prober.post)
    if not isinstance(refusal, Arrival):
        yield Finding(
            Severity.ERROR,
            facts.realm,
            f"POST does not arrive: {refusal}; containerd, BuildKit, docker from 29 on and every refresh token need it",
            "allow GET and POST on the realm's path in the proxy",
        )
        return
    refusal = _refusal(lambda: prober.post(chunked=True))
    if not isinstance(refusal, Arrival):
        yield Finding(
            Severity.WARNING,
            facts.realm,
            f"a form in chunks does not arrive: {refusal}; podman, skopeo and buildah send refresh tokens so",
            "mod_wsgi: WSGIChunkedRequest On; uWSGI: --http-chunked-input; nginx: leave proxy_request_buffering on",
        )


def _length_findings(prober: Prober, realm: str) -> Iterator[Finding]:
    tries = {
        f"Authorization with {LONG_HEADER} characters": prober.long_header,
        f"a query with {LONG_QUERY}": prober.long_query,
    }
    refused = [
        f"{what}: {refusal}" for what, send in tries.items() if not isinstance(refusal := _refusal(send), Arrival)
    ]
    if refused:
        yield Finding(
            Severity.WARNING,
            realm,
            f"long requests do not arrive ({'; '.join(refused)}); a CI job's password and an image copied from many "
            "others make such ones",
            "nginx: large_client_header_buffers 4 64k; Apache: LimitRequestLine and LimitRequestFieldSize 65536; "
            "gunicorn: --limit-request-line 0 --limit-request-field_size 65536",
        )


def _address_findings(prober: Prober, arrival: Arrival, facts: Facts) -> Iterator[Finding]:
    proxies, peer = facts.config.server.proxies(), arrival.content["peer"]
    name = peer or "unix"
    named = {header: value for header, value in arrival.forwarded.items() if header in ("X-Forwarded-For", "Forwarded")}
    trusted = proxies.trusts(parse_address(peer))
    place = f"[server] trusted_proxies in {facts.config.path}"
    # Only through a proxy: else it is this machine that claims, and tokenissuer would warn of a proxy.
    claim = _refusal(lambda: prober.claiming(proxies.header)) if arrival.is_proxied else ""
    if isinstance(claim, Arrival) and claimed_through(claim, proxies):
        yield Finding(
            Severity.ERROR,
            place,
            f"a client can choose its own address: the proxy at {name} passes {proxies.header} on as it comes",
            f'let the proxy set it: nginx: proxy_set_header X-Forwarded-For $remote_addr; or take "{name}" out of '
            "trusted_proxies",
        )
        return
    if named and not trusted:
        header, value = next(iter(named.items()))
        yield Finding(
            Severity.WARNING,
            place,
            f"a proxy at {name} names its clients ({header}: {value}), and trusted_proxies does not name the proxy: "
            f"all clients count as one, {arrival.content['client'] or 'unknown'}",
            f'add "{name}" to trusted_proxies',
        )
    elif named and trusted and proxies.header not in named:
        header = next(iter(named))
        yield Finding(
            Severity.WARNING,
            f"[server] forwarded_header in {facts.config.path}",
            f"the proxy at {name} names its clients in {header}, and forwarded_header is {proxies.header}: all clients "
            "count as one",
            f'write forwarded_header = "{header}"',
        )
    elif not named and arrival.is_proxied and (not peer or peer.startswith("127.") or peer == "::1"):
        yield Finding(
            Severity.WARNING,
            place,
            f"a proxy at {name} does not name its clients: all of them count as one",
            f'nginx: proxy_set_header X-Forwarded-For $remote_addr; and trusted_proxies needs "{name}"',
        )


def _refusal(send: Callable[[], Arrival]) -> Arrival | str:
    """Return what arrived, or why it did not."""
    try:
        return send()
    except Unreachable as error:
        return error.fact
    except Unanswered as error:
        return error.answer.described
