"""The htpasswd backend: every kind of hash, files that change, and writing them."""

from __future__ import annotations

import os
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import MappingProxyType

import bcrypt
import pytest

from tokenissuer.accounts.backend import Backend
from tokenissuer.errors import ConfigurationError, InvalidCredentials, TokenIssuerError, UnknownAccount
from tokenissuer.testing import BackendContract
from tokenissuer_backends.htpasswd import HtpasswdBackend, HtpasswdOptions
from tokenissuer_backends.htpasswd import backend as backend_module
from tokenissuer_backends.htpasswd import hash as hash_module
from tokenissuer_backends.htpasswd.lines import lines_of

HashOf = Callable[[str], str]
SHA = "{SHA}nU4eI71bcnBGqeO0t9tXvY1u5oQ="  # pass
SPACED = "p\N{LATIN SMALL LETTER A WITH DIAERESIS}ss: w\N{SNOWMAN}rd"


@pytest.fixture(autouse=True)
def _cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """New hashes at the lowest cost."""
    monkeypatch.setattr(hash_module, "BCRYPT_COST", 4)


def opened(path: Path, groups: Path | None = None) -> HtpasswdBackend:
    return HtpasswdBackend(HtpasswdOptions(path, groups))


def rewrite(path: Path, text: str) -> None:
    """Put a new file in the old one's place, as careful programs do."""
    fresh = path.with_suffix(".new")
    fresh.write_text(text)
    fresh.replace(path)


class TestHtpasswd(BackendContract):
    """What holds for every backend holds for this one."""

    username = "alice"
    password = "Right-Word"
    others = MappingProxyType({"bob": "Other-Word", "caf\N{LATIN SMALL LETTER E WITH ACUTE}": SPACED})

    @pytest.fixture
    def backend(self, tmp_path: Path, hash_of: HashOf) -> Iterator[Backend]:
        path, groups = tmp_path / "users.htpasswd", tmp_path / "users.groups"
        accounts = {self.username: self.password, **self.others}
        path.write_text("".join(f"{name}:{hash_of(password)}\n" for name, password in accounts.items()))
        groups.write_text("".join(f"of-{name}: {name}\n" for name in accounts))
        backend = opened(path, groups)
        yield backend
        backend.close()


# The sample of Drepper's SHA-crypt specification.
SHA512 = "$6$saltstring$svn8UoSVapNtMuq1ukKS4tPQd8iKwSMHWjl/O817G3uBnIFNjnQJuesI68u4OTLiBFdcbYEdFCoEOfaS35inz1"
VECTORS = [
    # Openwall's crypt_blowfish, as its own test prints them.
    pytest.param("$2a$05$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOeW", "U*U", id="2a"),
    pytest.param("$2y$05$CCCCCCCCCCCCCCCCCCCCC.VGOzA784oUp/Z0DY336zx7pLYAy0lwK", "U*U*", id="2y"),
    pytest.param("$2b$05$XXXXXXXXXXXXXXXXXXXXXOAcXxm9kjPGEMsLznoKqmqw7tc8WCx4a", "U*U*U", id="2b"),
    # Drepper's SHA-crypt specification.
    pytest.param("$5$saltstring$5B8vYYiY.CVt1RlTTf8KbXBH3hsxY/GNooZaBBGWEc5", "Hello world!", id="sha256"),
    pytest.param(
        "$5$rounds=10000$saltstringsaltst$3xv.VbSHBb41AL9AvLeujZkZRBAwqFMz2.opqey6IcA",
        "Hello world!",
        id="sha256-rounds",
    ),
    pytest.param(SHA512, "Hello world!", id="sha512"),
    pytest.param(
        "$6$rounds=1400$anotherlongsalts$POfYwTEok97VWcjxIiSOjiykti.o/pQs.wPvMxQ6Fm7I6IoYN3CmLs66x9t0oSwbtEW7o7UmJEiDwGqd8p4ur1",
        "a very much longer text to encrypt.  This one even stretches over morethan one line.",
        id="sha512-rounds",
    ),
    pytest.param("$apr1$r31.....$HqJZimcKQFAMYayBlzkrA/", "myPassword", id="apr1"),
    pytest.param("{SHA}VBPuJHI7uixaa6LQGWx4s+5GKNE=", "myPassword", id="sha1"),
    # The test of the reference implementation, https://github.com/P-H-C/phc-winner-argon2/blob/master/src/test.c
    pytest.param(
        "$argon2id$v=19$m=65536,t=2,p=1$c29tZXNhbHQ$CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8ArZWb2GRPPc",
        "password",
        id="argon2id",
    ),
    # As libxcrypt 4.4 makes it.
    pytest.param(
        "$y$j9T$AAt9R641xPvCI9nXw1HHW/$nCv3bckjDEC9Q5ahIEpyXVNGZhySye/ZdjxNxTY5ttB", "password", id="yescrypt"
    ),
]


@pytest.mark.parametrize(("hash_", "password"), VECTORS)
def test_hashes_published_elsewhere_are_understood(file: Path, hash_: str, password: str) -> None:
    """Vectors of other people's programs and specifications."""
    file.write_text(f"alice:{hash_}\n")
    backend = opened(file)
    assert backend.authenticate("alice", password).name == "alice"
    for wrong in (password + "x", password[:-1], password.swapcase()):
        with pytest.raises(InvalidCredentials):
            backend.authenticate("alice", wrong)


@pytest.mark.parametrize("kind", ["2a", "2b", "2y"])
def test_a_password_of_more_than_72_bytes_is_refused(file: Path, kind: str) -> None:
    """bcrypt would take its beginning for the whole."""
    whole = "\N{LATIN SMALL LETTER A WITH DIAERESIS}" * 36
    hash_ = bcrypt.hashpw(whole.encode(), bcrypt.gensalt(4)).decode()
    file.write_text(f"alice:${kind}{hash_[3:]}\n")
    backend = opened(file)
    assert backend.authenticate("alice", whole).name == "alice"
    for longer in (whole + "x", whole + "\N{SNOWMAN}" * 100):
        with pytest.raises(InvalidCredentials):
            backend.authenticate("alice", longer)


PLAIN = "planted-plain-text-password"
DAMAGED = "its hash is damaged, or takes longer than a login can wait"
UNUSABLE = [
    pytest.param(f"bob:{PLAIN}", "its password is not a hash", id="plain-text"),
    pytest.param("bob:", "it is locked", id="no-hash"),
    pytest.param("bob:*", "it is locked", id="locked"),
    pytest.param(f"bob:!{SHA}", "it is locked", id="locked-with-hash"),
    pytest.param(f"bob :{SHA}", "there is a blank between the name and the colon", id="space-behind-the-name"),
    pytest.param(f"bob: {SHA}", "there is a blank around its hash", id="space-before-the-hash"),
    pytest.param(f"bob:{SHA} :x", "there is a blank around its hash", id="space-behind-the-hash"),
    pytest.param("bob:{SHA}AAAA", DAMAGED, id="short-sha"),
    pytest.param("bob:$apr1$x$y", DAMAGED, id="short-apr1"),
    pytest.param("bob:$5$rounds=$x$" + "a" * 43, DAMAGED, id="empty-rounds"),
    pytest.param("bob:$5$rounds=10$x$" + "a" * 43, DAMAGED, id="few-rounds"),
    pytest.param("bob:$5$rounds=01000$x$" + "a" * 43, DAMAGED, id="rounds-with-a-nought"),
    pytest.param("bob:$6$" + "s" * 17 + "$" + "a" * 86, DAMAGED, id="long-salt"),
    pytest.param("bob:$2b$03$" + "." * 53, DAMAGED, id="bcrypt-cost-3"),
    pytest.param("bob:$2b$32$" + "." * 53, DAMAGED, id="bcrypt-cost-32"),
    pytest.param("bob:$2b$18$" + "." * 53, DAMAGED, id="bcrypt-too-slow"),
    pytest.param("bob:$6$rounds=999999999$s$" + "." * 86, DAMAGED, id="sha512-too-slow"),
    pytest.param("bob:$5$rounds=1000000$s$" + "." * 43, DAMAGED, id="sha256-too-slow"),
    pytest.param("bob:$argon2id$v=19$m=999999,t=3,p=4$c2FsdHNhbHQ$" + "a" * 43, DAMAGED, id="argon2id-too-large"),
    pytest.param("bob:$argon2id$v=19$m=65536,t=99,p=4$c2FsdHNhbHQ$" + "a" * 43, DAMAGED, id="argon2id-too-slow"),
    pytest.param("bob:$y$jFT$salt$" + "a" * 43, DAMAGED, id="yescrypt-too-slow"),
    pytest.param("bob:$2x$05$" + "." * 53, "a kind that is not known here", id="bcrypt-2x"),
    pytest.param("bob:$2b$04$" + "." * 52, DAMAGED, id="short-bcrypt"),
    pytest.param("bob:$2b$04$" + "." * 21 + "9" + "." * 31, DAMAGED, id="bcrypt-salt-no-program-makes"),
    pytest.param("bob:$1$abc$" + "a" * 22, "its hash is MD5-crypt", id="md5-crypt"),
    pytest.param("bob:$argon2i$v=19$m=65536,t=3,p=4$c2FsdA$aaaa", "argon2 in another form", id="argon2i"),
    pytest.param("bob:$7$CU..../....salt$hash", "its hash is scrypt", id="scrypt"),
    pytest.param("bob:$gy$j9T$salt$hash", "its hash is gost-yescrypt", id="gost-yescrypt"),
    pytest.param("bob:{SSHA}MTIzNDU2Nzg5MDEyMzQ1Njc4OTA=", "its hash is a kind for LDAP servers", id="ssha"),
    pytest.param("bob:rqXexS6ZhobKA", "its hash is DES", id="des-crypt"),
    pytest.param("bob:realm of it:" + "0f" * 16, "it is a line of a digest file", id="htdigest"),
    pytest.param("bob:" + "0f" * 16, "its hash is MD5 without salt", id="bare-md5"),
]


@pytest.mark.parametrize(("line", "reason"), UNUSABLE)
def test_a_line_that_cannot_be_used_locks_out_its_own_account(file: Path, line: str, reason: str) -> None:
    """And no other. File, number and reason are named, never the content: a plain-text password may stand there."""
    file.write_text(f"# comment\n\nalice:{SHA}\n{line}\ncarol:{SHA}\n")
    backend = opened(file)
    for name in ("alice", "carol"):
        assert backend.authenticate(name, "pass").name == name
    for password in ("pass", PLAIN):
        with pytest.raises(InvalidCredentials) as caught:
            backend.authenticate("bob", password)
        # Another backend must not be asked: the name is known.
        assert not isinstance(caught.value, UnknownAccount)
        assert caught.value.description == "wrong user name or password"
    with pytest.raises(InvalidCredentials):
        backend.lookup("bob", "")
    ((name, text),) = backend.listing().unusable.items()
    assert name == "bob"
    assert backend.listing().accounts == {"alice", "bob", "carol"}
    assert text.startswith(f"{file}, line 4: ")
    assert reason in text
    assert PLAIN not in text
    assert line.partition(":")[2] == "" or line.partition(":")[2][:40] not in text or line.endswith(("*", "!"))
    assert "\n" not in text


IGNORED = [
    pytest.param(PLAIN, "not a line of name:hash", id="password-alone"),
    pytest.param(f":{PLAIN}", "not a line of name:hash", id="no-name"),
    pytest.param(f"\ufeffbob:{PLAIN}", "not a line of name:hash", id="a-mark-in-the-middle"),
    pytest.param(f"# bob: \\\nbob:{PLAIN}", "a comment ends with a backslash", id="comment-with-a-backslash"),
    pytest.param(f"b\0b:{SHA}", "not a line of name:hash", id="nul"),
    pytest.param("alice:$2b$04$" + "." * 53, "'alice' is in line 1 already, which counts", id="name-twice"),
    pytest.param("alice:", "'alice' is in line 1 already, which counts", id="name-twice-and-locked"),
]


@pytest.mark.parametrize(("line", "reason"), IGNORED)
def test_a_line_that_is_no_accounts_is_left_out_and_named(file: Path, line: str, reason: str) -> None:
    """By `check`. Of two lines with one name Apache reads the first."""
    file.write_text(f"alice:{SHA}\n{line}\ncarol:{SHA}\n")
    backend = opened(file)
    for name in ("alice", "carol"):
        assert backend.authenticate(name, "pass").name == name
    texts = backend.listing().ignored
    assert len(texts) == 1
    assert reason in texts[0]
    assert "line 2" in texts[0]
    assert PLAIN not in texts[0]


def test_a_line_that_is_not_utf_8_locks_out_its_own_account(file: Path) -> None:
    """Its name may still be readable; its bytes are not shown."""
    file.write_bytes(f"alice:{SHA}\n".encode() + b"b\xf6b:planted\ncarol:plan\xf6ted\ndave:" + SHA.encode())
    backend = opened(file)
    assert backend.authenticate("alice", "pass").name == "alice"
    assert backend.authenticate("dave", "pass").name == "dave"
    assert list(backend.listing().unusable) == ["carol"]
    texts = backend.listing().ignored
    assert any("line 2: not a line of name:hash in UTF-8" in text for text in texts)
    assert "planted" not in "".join(texts)


def test_what_is_not_utf_8_stays_as_it_is_when_a_password_is_set(file: Path) -> None:
    """It may be somebody's name in another program."""
    file.write_bytes(f"alice:{SHA}\n".encode() + b"b\xf6b:x\n")
    opened(file).set_password("alice", "word")
    assert file.read_bytes().endswith(b"\nb\xf6b:x\n")


def test_every_line_the_reader_takes_can_be_asked_for_a_password(file: Path) -> None:
    """A hash of the right shape whose content is noise refuses; it never raises anything else."""
    letters = "./ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
    hashes = [f"$2b$04${'.' * 21}{letter}{'.' * 30}{other}" for letter in letters for other in ".9"]
    hashes += [f"$5$rounds=1000${'s' * n}${letter * 43}" for n, letter in zip(range(17), letters, strict=False)]
    hashes += [f"$6$rounds=1000${'s' * n}${letter * 86}" for n, letter in zip(range(17), letters, strict=False)]
    hashes += [f"$apr1${'s' * n}${letter * 22}" for n, letter in zip(range(9), letters, strict=False)]
    hashes += [f"{{SHA}}{letter * 27}=" for letter in letters[1:]]
    taken = 0
    for hash_ in hashes:
        file.write_text(f"alice:{hash_}\n")
        backend = opened(file)
        if backend.listing().unusable:
            continue
        taken += 1
        with pytest.raises(InvalidCredentials):
            backend.authenticate("alice", "word")
    assert taken > 100


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(f"alice:{SHA}", id="no-newline-at-the-end"),
        pytest.param(f"\r\n# comment\r\nalice:{SHA}\r\n", id="crlf"),
        pytest.param(f"alice:{SHA}:more:fields\n", id="more-fields"),
        pytest.param(f"  \n\t\nalice:{SHA}\n\n\n", id="blank-lines"),
        pytest.param(f"# bob:{PLAIN}\nalice:{SHA}\n", id="comment"),
        pytest.param(f"  # bob:{PLAIN}\n  alice:{SHA}  \n", id="blanks-around"),
        pytest.param(f"\talice:{SHA}\t\r\n", id="tabs-around"),
        pytest.param(f"\ufeffalice:{SHA}\n", id="byte-order-mark"),
        pytest.param(f"\ufeff\ufeff\u200balice:{SHA}\n", id="several-marks"),
        pytest.param(f"alice:{SHA}\nalice:{PLAIN}\n", id="the-first-of-two-counts"),
    ],
)
def test_what_apache_reads_is_read(file: Path, text: str) -> None:
    """Line ends, comments and further fields do no harm."""
    file.write_text(text, newline="")
    assert opened(file).authenticate("alice", "pass").name == "alice"


def test_names_count_letter_by_letter(file: Path) -> None:
    """No folding of case, spaces or look-alikes."""
    backend = opened(file)
    for name in ("Alice", "ALICE", "alice ", " alice", "alice:", "\N{FULLWIDTH LATIN SMALL LETTER A}lice", "alic"):
        with pytest.raises(InvalidCredentials):
            backend.authenticate(name, "pass")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("dev: alice bob\n", {"dev"}, id="one"),
        pytest.param("dev: alice\nops: bob alice\n", {"dev", "ops"}, id="two"),
        pytest.param("dev:alice\ndev: bob\n", {"dev"}, id="no-space-and-continued"),
        pytest.param("# ops: alice\n\ndev:\talice\r\n", {"dev"}, id="comment-and-crlf"),
        pytest.param("dev: Alice alic alicee\n", set(), id="others"),
        pytest.param("dev:\n", set(), id="empty"),
        pytest.param("two words: alice\n", {"two words"}, id="space-in-the-group"),
        pytest.param('dev: "two words" "alice" bob\n', {"dev"}, id="quoted"),
        pytest.param("dev: 'it\\'s me' 'alice'\n", {"dev"}, id="quoted-with-a-quote"),
        pytest.param('dev: "alice bob"\n', set(), id="quoted-together"),
        pytest.param("dev: bob \\\n  alice\n", {"dev"}, id="continued-line"),
        pytest.param("  # ops: alice\n  dev: alice  \n", {"dev"}, id="blanks-around"),
        pytest.param("\ufeffdev: alice\n", {"dev"}, id="byte-order-mark"),
    ],
)
def test_groups_are_read_as_apache_writes_them(file: Path, text: str, expected: set[str]) -> None:
    """`group: user user`, on as many lines as one likes."""
    groups = file.with_name("groups")
    groups.write_text(text, newline="")
    backend = opened(file, groups)
    assert backend.authenticate("alice", "pass").groups == expected


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("# a\nalice:x\n", [(2, b"alice:x")]),
        ("# a \\\nalice:x\n", [(1, b"# a alice:x")]),
        ("# a \\\nalice:x", [(1, b"# a alice:x")]),
        ("# a \\\nalice:x \\", [(1, b"# a alice:x")]),
        ("# a \\\n\nalice:x\n", [(3, b"alice:x")]),
        ("\\\n# a\nalice:x\n", [(3, b"alice:x")]),
        ("ali\\\nce:x\n", [(1, b"alice:x")]),
        ("# C:\\\\\nalice:x\n", [(2, b"alice:x")]),
    ],
)
def test_a_comment_that_hides_a_line_is_no_comment(text: str, lines: list[tuple[int, bytes]]) -> None:
    """So that it can be reported."""
    assert list(lines_of(text.encode())) == lines


@pytest.mark.parametrize(
    "line",
    ["alice", "dev alice", ": alice", "  : alice", "\ufeffdev: bob", "dev: b\u200bob", "# a comment \\\ndev: bob"],
)
def test_a_broken_group_line_stops_the_start(file: Path, line: str) -> None:
    """With file and number."""
    groups = file.with_name("groups")
    groups.write_text(f"dev: alice\n{line}\n")
    with pytest.raises(ConfigurationError, match="line 2") as caught:
        opened(file, groups)
    assert str(groups) in str(caught.value)


def test_every_broken_group_line_is_named_at_once(file: Path) -> None:
    """A line that is left out could switch a denial off, so none is."""
    groups = file.with_name("groups")
    groups.write_bytes(b'dev: alice\nalice\nDEV: bob\nops: "alice\n\xf6: bob\nqa: bob\n')
    with pytest.raises(ConfigurationError) as caught:
        opened(file, groups)
    for text in (
        "line 2: not a line of group",
        "line 3: 'DEV' differs only in capitals from the group 'dev'",
        "line 4: a quote is not closed",
        "line 5: not UTF-8",
    ):
        assert text in str(caught.value)
    assert "line 6" not in str(caught.value)


@pytest.mark.parametrize("which", ["passwords", "groups"])
def test_a_missing_file_stops_the_start(file: Path, which: str) -> None:
    """And is named."""
    missing = file.with_name("missing")
    with pytest.raises(ConfigurationError, match=f"cannot read {missing}: No such file"):
        opened(*((missing,) if which == "passwords" else (file, missing)))


@pytest.mark.parametrize("kind", ["bcrypt", "sha512", "empty"])
def test_an_unknown_name_costs_a_hash_as_a_known_one_does(
    file: Path, monkeypatch: pytest.MonkeyPatch, hash_of: HashOf, kind: str
) -> None:
    """Counted, not timed: the same work on a hash that is in the file, and the same one each time."""
    hashes = {"bcrypt": hash_of("word"), "sha512": SHA512, "empty": ""}
    file.write_text("".join(f"{name}:{hashes[kind]}\n" for name in ("alice", "bob", "carol") if hashes[kind]))
    backend = opened(file)
    worked: list[str] = []
    real = hash_module.verify

    def counted(password: str, hash_: str) -> bool:
        worked.append(hash_)
        return real(password, hash_)

    monkeypatch.setattr(hash_module, "verify", counted)
    if kind == "empty":
        monkeypatch.setattr(backend_module, "_STAND_IN", hash_of("nobody"))
    for _ in range(2):
        with pytest.raises(UnknownAccount):
            backend.authenticate("nobody", "word")
    assert len(worked) == 2
    assert len(set(worked)) == 1
    if kind != "empty":
        assert worked[0] == hashes[kind]
        with pytest.raises(InvalidCredentials):
            backend.authenticate("alice", "wrong")
        assert len(worked) == 3


def test_nobody_logs_in_with_a_stand_ins_password(file: Path) -> None:
    """The unknown name is held against somebody's hash; the right password for that one is of no use."""
    backend = opened(file)
    for name in ("nobody", "Alice", "root", ""):
        with pytest.raises(InvalidCredentials):
            backend.authenticate(name, "pass")


def test_a_long_password_costs_the_same_hash(file: Path, monkeypatch: pytest.MonkeyPatch, hash_of: HashOf) -> None:
    """Its refusal must not tell a bcrypt account by its speed."""
    file.write_text(f"alice:{hash_of('word')}\n")
    backend = opened(file)
    calls: list[int] = []
    real = bcrypt.checkpw

    def counted(password: bytes, hashed: bytes) -> bool:
        calls.append(len(password))
        return real(password, hashed)

    monkeypatch.setattr(bcrypt, "checkpw", counted)
    for name in ("alice", "nobody"):
        with pytest.raises(InvalidCredentials):
            backend.authenticate(name, "x" * 100)
    assert calls == [72, 72]


def test_a_large_file_is_read_in_proportion_and_asked_at_once(file: Path) -> None:
    """Ten times the lines take about ten times as long, not a hundred, and a login looks at one of them."""

    def reading(lines: int) -> tuple[float, HtpasswdBackend]:
        file.write_text("".join(f"user{n}:{SHA}\n" for n in range(lines)))
        best, backend = 99.0, None
        for _ in range(3):
            start = time.perf_counter()
            backend = opened(file)
            best = min(best, time.perf_counter() - start)
        assert backend is not None
        return best, backend

    def login(backend: HtpasswdBackend) -> float:
        best = 99.0
        for _ in range(30):
            start = time.perf_counter()
            backend.authenticate("user7", "pass")
            best = min(best, time.perf_counter() - start)
        return best

    small, few = reading(10_000)
    asked_few = login(few)
    large, many = reading(100_000)
    assert large < 50 * small
    assert login(many) < 20 * asked_few


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_password_is_changed_and_everything_else_is_kept(file: Path) -> None:
    """Comments, blank lines and order; the new hash is bcrypt."""
    text = f"# first\n\nbob:{SHA}\nalice:{SHA}\n# alice:{SHA}\nalicea:{SHA}"
    file.write_text(text)
    backend = opened(file)
    backend.set_password("alice", SPACED)
    assert opened(file).authenticate("alice", SPACED).name == "alice"
    lines = file.read_text().split("\n")
    assert lines[3].startswith("alice:$2b$")
    lines[3] = f"alice:{SHA}"
    assert "\n".join(lines) == text + "\n"
    backend.set_password("carol", "word")
    assert file.read_text().split("\n")[-2].startswith("carol:$2b$")
    assert backend.authenticate("bob", "pass").name == "bob"


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("# C:\\\\\nalice:{0}\n", id="two-backslashes-before"),
        pytest.param("bob:x\\\nalice:{0}\nalice:{0}\n", id="in-what-another-line-goes-on-with"),
        pytest.param("alice:\\\n{0}\ncarol:{0}\n", id="on-two-lines"),
        pytest.param("  alice:{0}\r\n", id="blanks"),
        pytest.param("alice:{0}\\", id="ends-in-a-backslash"),
    ],
)
def test_the_line_that_counts_is_changed(file: Path, text: str) -> None:
    """Whatever stands around it: after a leak, the old password must not stay."""
    file.write_text(text.format(SHA), newline="")
    opened(file).set_password("alice", "fresh word")
    backend = opened(file)
    assert backend.authenticate("alice", "fresh word").name == "alice"
    with pytest.raises(InvalidCredentials):
        backend.authenticate("alice", "pass")


@pytest.mark.parametrize("text", ["ali\\\nce:{0}\n", "alice :{0}\n"])
def test_a_line_that_only_a_person_can_change_is_said(file: Path, text: str) -> None:
    """And stays as it is."""
    file.write_text(text.format(SHA))
    before = file.read_bytes()
    with pytest.raises(TokenIssuerError, match="another line of the account counts; correct the file by hand"):
        opened(file).set_password("alice", "fresh word")
    assert file.read_bytes() == before


@pytest.mark.parametrize(
    "hash_",
    [SHA512, "$5$saltstring$5B8vYYiY.CVt1RlTTf8KbXBH3hsxY/GNooZaBBGWEc5", "$apr1$r31.....$HqJZimcKQFAMYayBlzkrA/"],
)
def test_no_password_is_so_long_that_it_takes_long(file: Path, monkeypatch: pytest.MonkeyPatch, hash_: str) -> None:
    """SHA-crypt takes time for each byte in each round: one request could keep a processor for minutes."""
    file.write_text(f"alice:{hash_}\n")
    lengths: list[int] = []
    kind = hash_[:3]
    real = hash_module._VERIFIERS[kind]

    def counted(secret: bytes, hash_: str) -> bool:
        lengths.append(len(secret))
        return real(secret, hash_)

    monkeypatch.setitem(hash_module._VERIFIERS, kind, counted)
    backend = opened(file)
    for name in ("alice", "nobody"):
        with pytest.raises(InvalidCredentials):
            backend.authenticate(name, "\N{SNOWMAN}" * 4096)
    assert lengths == [256, 256]


def test_a_comment_stays_a_comment(file: Path) -> None:
    """A carriage return inside one begins no line when the file is read, so it must not when it is written."""
    file.write_text(f"# retired:\rmallory:{SHA}\nalice:{SHA}\n", newline="")
    backend = opened(file)
    backend.set_password("alice", "word")
    with pytest.raises(UnknownAccount):
        backend.authenticate("mallory", "pass")
    assert file.read_bytes().startswith(f"# retired:\rmallory:{SHA}\n".encode())


@pytest.mark.parametrize(
    "name",
    ["", "a:b", "#a", " a", "a ", "a\n", "a\nroot:x", "a\r", "a\0", "\t", "\x7f", "x" * 2000, "\udcff"],
)
def test_a_name_that_cannot_stand_in_the_file_is_refused(file: Path, name: str) -> None:
    """And the file stays as it was."""
    before = file.read_bytes()
    with pytest.raises(TokenIssuerError) as caught:
        opened(file).set_password(name, "word")
    assert "\n" not in str(caught.value)
    assert file.read_bytes() == before


@pytest.mark.parametrize("password", ["", "x" * 73, "\N{SNOWMAN}" * 25, "a\nb", "\0", "\udcff"])
def test_a_password_that_could_never_be_used_is_refused(file: Path, password: str) -> None:
    """Rather than kept in a form that no login matches; and not repeated."""
    before = file.read_bytes()
    with pytest.raises(TokenIssuerError) as caught:
        opened(file).set_password("alice", password)
    assert not password or password not in str(caught.value)
    assert file.read_bytes() == before


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o400])
def test_mode_and_owner_are_kept(file: Path, mode: int) -> None:
    """The web server that also reads the file goes on reading it."""
    file.chmod(mode)
    owner = (12345, 54321) if os.geteuid() == 0 else (os.geteuid(), os.getegid())
    os.chown(file, *owner)
    backend = opened(file)
    backend.set_password("alice", "word")
    status = file.stat()
    assert (mode_of(file), (status.st_uid, status.st_gid)) == (mode, owner)


def test_the_group_is_kept_in_a_folder_that_gives_files_its_own(file: Path) -> None:
    """Else a group that was never meant to may read the hashes."""
    if os.geteuid() != 0:
        pytest.skip("only root can give files to groups")
    os.chown(file.parent, -1, 54321)
    file.parent.chmod(0o2770)
    os.chown(file, 0, 0)
    file.chmod(0o640)
    opened(file).set_password("alice", "word")
    assert file.stat().st_gid == 0


def test_a_link_stays_a_link(file: Path, tmp_path: Path) -> None:
    """What it points to is replaced."""
    link = tmp_path / "etc" / "users"
    link.parent.mkdir()
    link.symlink_to(file)
    backend = opened(link)
    backend.set_password("alice", "word")
    assert link.is_symlink()
    assert opened(link).authenticate("alice", "word").name == "alice"
    assert "alice:$2b$" in file.read_text()
    assert [path.name for path in link.parent.iterdir()] == ["users"]


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The new one counts only when it is whole and on disk."""
    before = file.read_bytes()
    backend = opened(file)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(TokenIssuerError, match="No space left on device"):
        backend.set_password("bob", "word")
    assert file.read_bytes() == before
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_writers_at_the_same_time_lose_nothing(file: Path) -> None:
    """Each reads what the other has written."""
    names = [f"user{n}" for n in range(24)]

    def write(mine: list[str]) -> None:
        for name in mine:
            opened(file).set_password(name, "word")

    threads = [threading.Thread(target=write, args=(names[start::4],)) for start in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = [line.partition(":")[0] for line in file.read_text().splitlines()]
    assert sorted(found) == sorted(["alice", *names])


@pytest.mark.parametrize(
    ("hash_", "says"),
    [
        (SHA, "unsalted SHA-1"),
        ("$apr1$r31.....$HqJZimcKQFAMYayBlzkrA/", "APR1-MD5"),
        ("$2b$04$" + "." * 53, "cost 4"),
        ("$2b$15$" + "." * 53, "cost 15"),
        ("$2b$12$" + "." * 53, None),
        (SHA512, None),
        ("$6$rounds=600000$salt$" + "." * 86, "600000 rounds"),
        ("$5$rounds=100000$salt$" + "." * 43, None),
    ],
)
def test_check_names_hashes_that_are_weak_or_slow(file: Path, hash_: str, says: str | None) -> None:
    """Each with the command that mends it; never with the hash."""
    file.write_text(f"alice:{hash_}\n")
    findings = [str(finding) for finding in opened(file).diagnose()]
    if says is None:
        assert findings == []
    else:
        (finding,) = findings
        assert says in finding
        assert "tokenissuer passwd alice" in finding
        assert hash_ not in finding


def test_check_names_readers_and_members_who_are_nobody(file: Path) -> None:
    """A file mode that lets others read, and a group member without an account."""
    file.write_text("")
    file.chmod(0o644)
    groups = file.with_name("groups")
    groups.write_text("dev: ghost\n")
    texts = [str(finding) for finding in opened(file, groups).diagnose()]
    assert any("mode 0644" in text and "chmod o-rwx,g-w" in text for text in texts)
    assert any("'ghost'" in text for text in texts)
    assert len(texts) == 2


@pytest.mark.parametrize(("mode", "is_open"), [(0o644, False), (0o664, False), (0o646, True)])
def test_check_names_a_group_file_that_others_can_write(file: Path, mode: int, is_open: bool) -> None:
    """Whoever can write it can make themselves a member of anything; root's own group has no other members."""
    file.write_text("")
    groups = file.with_name("groups")
    groups.write_text("")
    groups.chmod(mode)
    texts = [str(finding) for finding in opened(file, groups).diagnose()]
    assert ["others can change it" in text for text in texts] == [True] * is_open
