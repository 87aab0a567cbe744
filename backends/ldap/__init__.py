"""Accounts in an LDAP directory: OpenLDAP, FreeIPA, 389-ds, Active Directory. Begin with `backend`."""

from tokenissuer_backends.ldap.backend import LdapBackend

__all__ = ["LdapBackend"]
