"""Accounts in a password file as Apache's htpasswd writes it, groups in a file as Apache's AuthGroupFile reads it."""

from tokenissuer_backends.htpasswd.backend import HtpasswdBackend, HtpasswdOptions

__all__ = ["HtpasswdBackend", "HtpasswdOptions"]
