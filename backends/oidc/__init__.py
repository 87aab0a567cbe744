"""Machines log in with an ID token of their platform, and no password is kept anywhere."""

from tokenissuer_backends.oidc.backend import OidcBackend
from tokenissuer_backends.oidc.options import PRESETS, OidcOptions

__all__ = ["PRESETS", "OidcBackend", "OidcOptions"]
