"""Ports for the servers that tests start."""

from __future__ import annotations

from itertools import islice

from tests.support.machine import free_port, port_numbers


def test_a_port_is_not_given_twice() -> None:
    """A server that is still starting does not lose its port to the next one."""
    given = [free_port() for _ in range(500)]
    assert len(set(given)) == len(given)


def test_two_processes_of_a_run_have_different_ports() -> None:
    """Each gives all its own numbers before it begins again."""
    first, second = (list(islice(port_numbers(worker, 2), 6000)) for worker in range(2))
    assert len({*first, *second}) == 12000
