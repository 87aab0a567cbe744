"""What becomes of logins while a real slapd is killed, stopped, restarted or drops idle connections."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.integration.ldap.conftest import PEOPLE
from tokenissuer.accounts.cache import CachedBackend
from tokenissuer.accounts.chain import Chain
from tokenissuer.accounts.refusals import Refusals
from tokenissuer.errors import BackendUnavailable, InvalidCredentials
from tokenissuer.sessions.sqlite import SqliteOptions, SqliteStore
from tokenissuer_backends.ldap import LdapBackend

if TYPE_CHECKING:
    from tests.integration.ldap.conftest import Slapd

    NewBackend = Callable[..., LdapBackend]
    NewSlapd = Callable[..., Slapd]

pytestmark = pytest.mark.integration


class Load:
    """People logging in, four at a time, until told to stop."""

    def __init__(self, backend: LdapBackend) -> None:
        self.backend = backend
        self.is_over = threading.Event()
        self.seconds: list[float] = []
        self.errors: list[BaseException] = []
        self.threads = [threading.Thread(target=self._log_in, args=(user,)) for user in ("alice", "bob") * 2]

    def _log_in(self, user: str) -> None:
        while not self.is_over.is_set():
            started = time.monotonic()
            try:
                assert self.backend.authenticate(user, f"pw-{user}").name == user
            except BaseException as error:
                self.errors.append(error)
            self.seconds.append(time.monotonic() - started)
            time.sleep(0.01)

    def __enter__(self) -> Load:
        for thread in self.threads:
            thread.start()
        time.sleep(0.3)
        return self

    def __exit__(self, *_: object) -> None:
        time.sleep(0.3)
        self.is_over.set()
        for thread in self.threads:
            thread.join()
        assert not self.errors, self.errors[:3]


def test_the_first_servers_death_is_nobodys_failed_login(new_slapd: NewSlapd, new_backend: NewBackend) -> None:
    """SIGKILL in the middle of many logins; later it is back, and used again."""
    first, second = new_slapd(), new_slapd()
    backend = new_backend(first.tls, second.tls, allow_plaintext=False)
    with Load(backend) as load:
        first.kill()
        time.sleep(0.5)
        first.start()
    assert max(load.seconds) < 2


def test_a_server_that_hangs_costs_one_timeout(new_slapd: NewSlapd, new_backend: NewBackend) -> None:
    """SIGSTOP: connections succeed and nothing answers."""
    first, second = new_slapd(), new_slapd()
    backend = new_backend(first.tls, second.tls, allow_plaintext=False)
    with Load(backend) as load, first.hanging():
        time.sleep(2.5)
    assert max(load.seconds) < 5
    assert sum(seconds > 0.9 for seconds in load.seconds) <= 4


def test_all_servers_hanging_is_an_outage_in_time(new_slapd: NewSlapd, new_backend: NewBackend) -> None:
    """Never a refusal; and when they go on, so do we."""
    first, second = new_slapd(), new_slapd()
    backend = new_backend(first.tls, second.plain)
    backend.authenticate("alice", "pw-alice")
    with first.hanging(), second.hanging():
        started = time.monotonic()
        with pytest.raises(BackendUnavailable) as caught:
            backend.authenticate("alice", "pw-alice")
        assert time.monotonic() - started < 6
        assert caught.value.retry_after > 0
        with pytest.raises(BackendUnavailable):
            backend.lookup("alice", "")
        with pytest.raises(BackendUnavailable):
            backend.check()
    assert backend.authenticate("alice", "pw-alice").name == "alice"


def test_a_restart_is_not_noticed(new_slapd: NewSlapd, new_backend: NewBackend) -> None:
    """The connections that were kept are dead, and new ones are made without a word."""
    slapd = new_slapd()
    backend = new_backend(slapd.plain)
    for _ in range(3):
        backend.authenticate("alice", "pw-alice")
        slapd.kill()
        slapd.start()
    assert backend.authenticate("alice", "pw-alice").name == "alice"


def test_a_down_directory_is_an_outage_and_comes_back_by_itself(new_slapd: NewSlapd, new_backend: NewBackend) -> None:
    """Also at the start."""
    slapd = new_slapd()
    with slapd.gone():
        backend = new_backend(slapd.tls)
        for _ in range(3):
            with pytest.raises(BackendUnavailable, match="Connection refused"):
                backend.authenticate("alice", "pw-alice")
    assert backend.authenticate("alice", "pw-alice").name == "alice"
    with pytest.raises(InvalidCredentials):
        backend.authenticate("alice", "wrong")


def test_a_server_that_drops_idle_connections_is_not_noticed(new_slapd: NewSlapd, new_backend: NewBackend) -> None:
    """It says so (a notice of disconnection), and the connection is not used again."""
    slapd = new_slapd(more="idletimeout 1")
    backend = new_backend(slapd.plain)
    for _ in range(2):
        assert backend.authenticate("alice", "pw-alice").name == "alice"
        time.sleep(2.2)
    started = time.monotonic()
    assert backend.authenticate("alice", "pw-alice").name == "alice"
    assert time.monotonic() - started < 1


def test_a_stale_password_costs_the_directory_one_bind_and_locks_nobody(
    new_slapd: NewSlapd, new_backend: NewBackend
) -> None:
    """Forty at once and a hundred more: one failure is counted where five would lock the account."""
    slapd = new_slapd()
    chain = Chain([CachedBackend("ldap", new_backend(slapd.plain), places=6)])

    def log_in() -> None:
        for _ in range(3):
            with pytest.raises(InvalidCredentials):
                chain.authenticate("victim", "stale")

    threads = [threading.Thread(target=log_in) for _ in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert slapd.failures("victim") == 1
    assert chain.authenticate("victim", "pw-victim").account.name == "victim"
    before = slapd.binds()
    for _ in range(200):
        chain.authenticate("victim", "pw-victim")
    assert slapd.binds() == before + 1  # the monitor's own


def test_a_robot_with_a_stale_password_locks_nobody_however_many_processes_there_are(
    new_slapd: NewSlapd, new_backend: NewBackend, tmp_path: Path
) -> None:
    """Six of them, each of which is asked twice; five wrong passwords would lock the account."""
    slapd = new_slapd()
    slapd.change(
        "ldapmodify", f"dn: uid=victim,{PEOPLE}\nchangetype: modify\nreplace: userPassword\nuserPassword: right\n"
    )
    # Nothing is remembered soon after a change.
    time.sleep(6)
    stores = [SqliteStore(SqliteOptions(tmp_path / "refresh.sqlite3")) for _ in range(6)]
    processes = []
    for store in stores:
        process = new_backend(slapd.plain)
        process.refusals = Refusals("ldap", b"key", store)
        processes.append(process)
    for process in processes * 2:
        with pytest.raises(InvalidCredentials):
            process.authenticate("victim", "pw-victim")
    assert slapd.failures("victim") == 1
    (said,) = [step.fact for step in processes[0].diagnose() if "lock after" in step.fact]
    assert "after 5, as far" in said
    assert "run at most 4" in said
    assert [process.authenticate("victim", "right").name for process in processes] == ["victim"] * 6
    # What was wrong before may be right now.
    slapd.change(
        "ldapmodify",
        f"dn: uid=victim,{PEOPLE}\nchangetype: modify\nreplace: userPassword\nuserPassword: pw-victim\n",
    )
    assert [process.authenticate("victim", "pw-victim").name for process in processes] == ["victim"] * 6
    for store in stores:
        store.close()


@pytest.mark.parametrize("is_shown", [True, False], ids=["shown", "hidden"])
def test_a_right_password_that_a_lock_has_refused_is_tried_again(
    new_slapd: NewSlapd, new_backend: NewBackend, is_shown: bool
) -> None:
    """Also where nothing shows the lock, and the server refuses as if the password were wrong."""
    slapd = new_slapd()
    if not is_shown:
        slapd.stop()
        path = slapd.folder / "slapd.conf"
        text = path.read_text().replace("ppolicy_use_lockout\n", "")
        path.write_text(
            text.replace(
                "access to attrs=userPassword",
                "access to attrs=pwdAccountLockedTime by * none\naccess to attrs=userPassword",
            )
        )
        slapd.start()
    dn = f"dn: uid=victim,{PEOPLE}\nchangetype: modify\n"
    slapd.change("ldapmodify", f"{dn}replace: userPassword\nuserPassword: right\n")
    backend = new_backend(slapd.plain)
    backend.refusals = Refusals("ldap", b"key")
    for number in range(5):
        with pytest.raises(InvalidCredentials):
            backend.authenticate("victim", f"wrong {number}")
    with pytest.raises(InvalidCredentials, match="locked" if is_shown else "bind result 49$"):
        backend.authenticate("victim", "right")
    slapd.change("ldapmodify", f"{dn}delete: pwdAccountLockedTime\n")
    assert backend.authenticate("victim", "right").name == "victim"


def test_grace_logins_are_not_used_up_by_one_push(new_slapd: NewSlapd, new_backend: NewBackend) -> None:
    """The refusal is remembered, so that a person can still change the password with what is left."""
    slapd = new_slapd()
    chain = Chain([CachedBackend("ldap", new_backend(slapd.plain), places=6)])
    for _ in range(20):
        with pytest.raises(InvalidCredentials, match="1 grace logins left"):
            chain.authenticate("grace", "pw-grace")


def test_while_the_directory_hangs_remembered_logins_are_served_at_once(
    new_slapd: NewSlapd, new_backend: NewBackend
) -> None:
    """And those it must be asked about are an outage, never a refusal."""
    slapd = new_slapd()
    memory = CachedBackend("ldap", new_backend(slapd.tls), places=2)
    memory.authenticate("alice", "pw-alice")
    with slapd.hanging():
        threads = [
            threading.Thread(target=pytest.raises, args=(BackendUnavailable, memory.authenticate, user, "x"))
            for user in ("bob", "carol", "dave", "erin")
        ]
        for thread in threads:
            thread.start()
        started = time.monotonic()
        for _ in range(100):
            assert memory.authenticate("alice", "pw-alice").name == "alice"
        assert time.monotonic() - started < 1
        for thread in threads:
            thread.join()
