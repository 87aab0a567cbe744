"""Names, filters and options: what is understood, and what is refused with a remedy."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ldap3.operation.search import search_operation

from tokenissuer.accounts.backend import load_backend
from tokenissuer.diagnosis import Severity
from tokenissuer.errors import ConfigurationError
from tokenissuer.options import decode
from tokenissuer_backends.ldap import LdapBackend
from tokenissuer_backends.ldap.filter import FilterTemplate
from tokenissuer_backends.ldap.name import DistinguishedName
from tokenissuer_backends.ldap.options import Address, LdapOptions

GOOD: dict[str, Any] = {"servers": ["ldaps://ldap.example.com"], "user": {"base": "ou=people,dc=example,dc=com"}}


@pytest.mark.parametrize(
    "spelling",
    [
        r"cn=Smith\, John,ou=People,dc=example",
        r"CN=smith\2c john,OU=people,DC=EXAMPLE",
        r"cn = Smith\2C  John , ou = People , dc = example",
        r"cn=\53mith\, John,ou=People,dc=example",
    ],
)
def test_one_name_has_many_spellings(spelling: str) -> None:
    """Case, spaces and the way of escaping do not matter."""
    name = DistinguishedName.parse(r"cn=Smith\, John,ou=People,dc=example")
    assert DistinguishedName.parse(spelling) == name
    assert hash(DistinguishedName.parse(spelling)) == hash(name)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("cn=a,dc=x", "cn=a"),
        ("cn=a,dc=x", "uid=a,dc=x"),
        ("cn=a,dc=x", r"cn=a\,dc\=x"),
        ("cn=a+uid=b", "cn=a,uid=b"),
        ("cn=a b", "cn=ab"),
        ("cn=ü", "cn=u"),
        ("cn=#0401", r"cn=\#0401"),
    ],
)
def test_different_names_stay_different(one: str, other: str) -> None:
    """Nothing is folded that a directory would tell apart."""
    assert DistinguishedName.parse(one) != DistinguishedName.parse(other)


def test_the_order_within_one_part_does_not_matter() -> None:
    """cn=a+uid=b is uid=b+cn=a."""
    assert DistinguishedName.parse("cn=a+uid=b,dc=x") == DistinguishedName.parse("UID=B+CN=A,dc=x")


@pytest.mark.parametrize(
    ("name", "base", "below"),
    [
        ("cn=a,ou=g,dc=x", "ou=g,dc=x", True),
        ("ou=g,dc=x", "OU=G, dc=x", True),
        ("cn=a,ou=other,dc=x", "ou=g,dc=x", False),
        (r"cn=a\,ou=g,dc=x", "ou=g,dc=x", False),
        ("dc=x", "ou=g,dc=x", False),
    ],
)
def test_a_name_is_below_a_base_part_by_part(name: str, base: str, below: bool) -> None:
    """Text that only ends alike is not below."""
    assert DistinguishedName.parse(name).is_below(DistinguishedName.parse(base)) is below


@pytest.mark.parametrize(
    "text",
    ["", "developers", "cn=", "cn=a,", ",cn=a", "=a", "cn=a\\", "cn=a\\zz", 'cn="a"', "cn=a;dc=b", r"cn=\ff", "1a=b"],
)
def test_what_is_no_name_is_refused(text: str) -> None:
    """A short name of a group, for one."""
    with pytest.raises(ValueError, match="not a distinguished name"):
        DistinguishedName.parse(text)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("uid={user}", "not a search filter"),
        ("(uid={user}", "not a search filter"),
        ("(uid={user}))", "not a search filter"),
        ("(uid={user})(cn=x)", "not a search filter"),
        ("(&)", "not a search filter"),
        ("(!(uid={user})(cn=x))", "not a search filter"),
        ("", "not a search filter"),
        ("({user}=x)", "not a search filter"),
        ("(uid={user}\\)", "not a search filter|backslash"),
        ("(uid={user}\\x)", "backslash"),
        ("(uid=%s)", "has no {user}"),
        ("(uid=alice)", "has no {user}"),
        ("(&(uid={user})(cn={dn}))", "has {dn}; known here: {user}"),
        ("(uid={User})", "has {User}"),
    ],
)
def test_a_filter_that_cannot_work_is_refused_at_the_start(text: str, complaint: str) -> None:
    """With the reason, and not at the first login."""
    with pytest.raises(ValueError, match=complaint):
        FilterTemplate(text, ["{user}"], ["{user}"])


def test_a_value_can_only_be_a_value() -> None:
    """Everything with a meaning is escaped, and so is what the library would strip."""
    template = FilterTemplate("(&(objectClass=person)(uid={user}))", ["{user}"], ["{user}"])
    assert template.fill({"{user}": "a.b-c_d@e"}) == "(&(objectClass=person)(uid=a.b-c_d@e))"
    assert template.fill({"{user}": " *()\\ü\0{user}"}).endswith("(uid=\\20\\2a\\28\\29\\5c\\c3\\bc\\00\\7buser\\7d))")


def test_a_filter_by_another_attribute_keeps_its_conditions() -> None:
    """Only the assertions about the user change."""
    template = FilterTemplate("(&(objectClass=person)(|(uid={user})(mail={user}@corp)))", ["{user}"], ["{user}"])
    assert template.by("cn", "{user}").text == "(&(objectClass=person)(|(cn={user})(cn={user})))"


@pytest.mark.parametrize(
    ("url", "host", "port", "tls"),
    [
        ("ldaps://ldap.example.com", "ldap.example.com", 636, True),
        ("ldap://LDAP.example.com/", "ldap.example.com", 389, False),
        ("ldaps://10.0.0.1:1636", "10.0.0.1", 1636, True),
        ("ldaps://[2001:db8::1]:1636", "2001:db8::1", 1636, True),
    ],
)
def test_addresses_of_servers(url: str, host: str, port: int, tls: bool) -> None:
    """Host names, literals of both kinds, and the usual ports."""
    assert Address.parse(url) == Address(url, host, port, tls)


@pytest.mark.parametrize(
    "url",
    [
        "ldap.example.com",
        "http://x",
        "ldaps://",
        "ldaps://x:0",
        "ldaps://x:99999",
        "ldaps://x:y",
        "ldaps://x/dc=x",
        "ldapi:///",
    ],
)
def test_what_is_no_address_is_refused(url: str) -> None:
    """A base in the URL would be ignored, so it is refused."""
    with pytest.raises(ValueError, match="not a URL such as"):
        Address.parse(url)


@pytest.mark.parametrize(
    ("more", "complaint"),
    [
        ({"servers": []}, "'servers' is empty"),
        ({"servers": ["ldaps://x", "ldaps://x"]}, "twice"),
        ({"servers": ["ldap://x"]}, "clear text; use ldaps://"),
        ({"servers": ["ldaps://x", "ldap://y"]}, "ldap://y would send every password in clear text"),
        ({"starttls": True}, "'starttls' is only for ldap://"),
        ({"bind_dn": "cn=reader,dc=x"}, "add bind_password_file"),
        ({"bind_password": "x"}, "without 'bind_dn'"),
        ({"bind_dn": "reader", "bind_password": "x"}, "not a distinguished name"),
        ({"bind_dn": "cn=r", "bind_password": ""}, "not empty"),
        ({"bind_as": "uid={user}", "bind_dn": "cn=r", "bind_password": "x"}, "keep one"),
        ({"bind_as": "uid=alice"}, "must have {user} in it once"),
        ({"bind_as": "uid={user},ou={unit}"}, "only placeholder"),
        ({"timeout": 0}, "'timeout' is 0; use 1 to 10"),
        ({"connect_timeout": 60}, "'connect_timeout' is 60; use 1 to 10"),
        ({"pool_size": -1}, "'pool_size' is -1"),
        ({"timeout": 2.5}, "found 2.5"),
        ({"directory": "openldap"}, "expected one of 'generic', 'freeipa', 'ad'"),
        ({"verify": False}, "unknown key 'verify'"),
        ({"user": {"base": "people"}}, "not a distinguished name"),
        ({"user": {"bas": "dc=x"}}, "did you mean 'base'"),
        ({"user": {"base": "dc=x", "filter": "uid={user}"}}, "not a search filter"),
        ({"user": {"base": "dc=x", "name": "uid,cn"}}, "the name of one attribute"),
        ({"groups": {}}, "'base' is missing"),
        ({"groups": {"base": []}}, "'base' is missing"),
        ({"groups": {"base": "dc=x", "required": [""]}}, "'required' has an empty name"),
        ({"groups": {"attribute": "tokenGroups"}}, "'base' is missing"),
        ({"user": {"base": []}}, "'base' is an empty list"),
        ({"user": {"base": ["dc=x", "x"]}}, "is not a distinguished name"),
        ({"servers": ["srv://x", "ldaps://y"]}, "stands alone"),
        ({"servers": ["srv://"]}, "stands alone"),
        ({"servers": ["ldapi://%2Frun%2Fslapd"]}, "is not a URL such as"),
        ({"groups": {"base": "dc=x", "nested": 11}}, "'nested' is 11"),
        ({"groups": {"base": "dc=x", "filter": "(member=x)"}}, "has no {dn} or {gid} or {name}"),
        ({"groups": {"attribute": "memberOf", "nested": 2}}, "leave out 'filter' and 'nested'"),
    ],
)
def test_mistakes_in_the_configuration_are_refused_with_a_remedy(
    tmp_path: Path, more: dict[str, Any], complaint: str
) -> None:
    """Before the first login, with table, key and remedy."""
    with pytest.raises(ConfigurationError, match=complaint) as caught:
        decode(LdapOptions, {**GOOD, **more}, "[[backends]] 1 (ldap)", tmp_path)
    assert "[[backends]] 1 (ldap)" in str(caught.value)


def test_a_file_of_cas_that_cannot_be_used_stops_the_start(tmp_path: Path) -> None:
    """Nothing else would show it before somebody logs in."""
    (tmp_path / "ca.pem").write_text("no certificate")
    for name, complaint in (("ca.pem", "has no PEM certificate"), ("missing.pem", "cannot read")):
        options = decode(LdapOptions, {**GOOD, "ca_file": name}, "x", tmp_path)
        with pytest.raises(ConfigurationError, match=complaint):
            LdapBackend(options)


def test_the_backend_is_found_by_its_name() -> None:
    """As any backend is."""
    assert load_backend("ldap") is LdapBackend


@pytest.mark.parametrize("directory", ["generic", "freeipa", "ad"])
def test_the_presets_are_filters_that_work(tmp_path: Path, directory: str) -> None:
    """Every one can be built with nothing but the three keys that must be given."""
    groups = {"base": "ou=groups,dc=example,dc=com"}
    LdapBackend(decode(LdapOptions, {**GOOD, "directory": directory, "groups": groups}, "x", tmp_path)).close()


def test_what_is_risky_is_said_by_check(tmp_path: Path) -> None:
    """Passwords in clear text, and names that people can change themselves."""
    table = {**GOOD, "servers": ["ldap://x"], "allow_plaintext": True}
    table["user"] = {"base": "dc=x", "filter": "(mail={user})", "name": "mail"}
    findings = [
        finding
        for finding in LdapBackend(decode(LdapOptions, table, "x", tmp_path)).diagnose()
        if not finding.subject.startswith("ldap")
    ]
    assert [finding.severity for finding in findings] == [Severity.WARNING, Severity.WARNING]
    assert "clear text" in findings[0].fact
    assert "'mail'" in findings[1].fact
    assert not [
        finding
        for finding in LdapBackend(decode(LdapOptions, GOOD, "x", tmp_path)).diagnose()
        if not finding.subject.startswith("ldap")
    ]


def test_no_option_shows_a_secret(tmp_path: Path) -> None:
    """Not even in a repr."""
    (tmp_path / "password").write_text("planted-secret\n")
    table = {**GOOD, "bind_dn": "cn=reader,dc=x", "bind_password_file": "password"}
    options = decode(LdapOptions, table, "x", tmp_path)
    assert options.bind_password is not None
    assert options.bind_password.reveal() == "planted-secret"
    assert "planted-secret" not in repr(options)


TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)


@given(TEXT)
def test_whatever_is_typed_is_one_value_for_the_library(text: str) -> None:
    """What goes to the server is one equality with these bytes, also after the library has read the filter."""
    filled = FilterTemplate("(uid={user})", ["{user}"], ["{user}"]).fill({"{user}": text})
    request = search_operation("dc=x", filled, "SUBTREE", "NEVER", ["1.1"], 0, 0, False, False, True)
    assert bytes(request["filter"]["equalityMatch"]["assertionValue"]) == text.encode()


@given(TEXT, TEXT)
def test_escaped_values_of_names_are_equal_only_if_they_are(one: str, other: str) -> None:
    """Octet by octet, as no server writes it and any may."""

    def name(value: str) -> DistinguishedName:
        return DistinguishedName.parse("cn=" + "".join(f"\\{octet:02X}" for octet in value.encode()) + ",dc=x")

    assert name(one).spelling == one
    assert len(name(one).parts) == 2
    assert (name(one) == name(other)) is (name(one).parts[0] == name(other).parts[0])
    if one.isalnum() and other.isalnum() and one.isascii() and other.isascii():
        assert (name(one) == name(other)) is (one.lower() == other.lower())


@given(st.text(max_size=60))
def test_any_text_is_a_name_or_refused(text: str) -> None:
    """No text makes the reader fail in another way, or take long."""
    with contextlib.suppress(ValueError):
        DistinguishedName.parse(text)
