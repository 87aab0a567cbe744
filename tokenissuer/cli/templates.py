"""The texts that `init` writes. Placeholders stand where TOML and YAML take a JSON string or number."""

from __future__ import annotations

from string import Template
from typing import Final

CONFIGURATION: Final = Template("""\
# Configuration of tokenissuer. Relative paths are relative to this file.
# After a change: `tokenissuer check`. What serves follows within seconds, or says in its log why it does not.

[issuer]
# Names that the registry's configuration must repeat letter by letter (registry.yml does):
name = $issuer                    # auth.token.issuer
services = [$service]    # auth.token.service; anything else is refused
realm = $realm    # auth.token.realm: where clients are sent; any URL that ends here
# Seconds for which a token is valid, at least 60. The upload of one layer must not take longer.
lifetime = 900

[signing]
key = "auth.key"
certificate = "auth.crt"              # the registry's auth.token.rootcertbundle
# A registry 3.x that has `jwks` and no `rootcertbundle` needs the key named in another way:
#key_forms = { $service_key = "thumbprint" }

# A proxy in front, on this machine: what it says of a client's address counts. Else all its clients would be one.
# Without a proxy take this out: programs of this machine could give any address for theirs.
[server]
trusted_proxies = ["127.0.0.1", "::1"]

# Account sources, asked in this order: the first that knows the name decides.
[[backends]]
type = "htpasswd"
path = "users.htpasswd"               # `tokenissuer passwd NAME` adds a line or changes it
#groups = "users.groups"              # lines of  group: name name

# Refresh tokens: `docker login` keeps one of these instead of the password; `tokenissuer sessions` lists and revokes
# them. Some clients cannot use what docker keeps then: Jib, kubelet's imagePullSecrets, CRI-O, oras-py, dxf, programs
# on the Rust oci-client, docker-maven-plugin before 0.31. For them take this table out, or use except_clients.
[refresh]
idle = 2592000                        # seconds of disuse after which a login ends
age = 31536000                        # seconds after which it ends in any case
#except_clients = ["docker"]          # client ids that are given none; `docker login` calls itself docker
#except_services = [$service]

[refresh.store]
type = "sqlite"
path = "refresh.sqlite3"

# Access rules. What no rule allows is forbidden; their order does not matter.
# Who:    accounts, groups, authenticated = true (logged in), everyone = true (not even that)
# What:   repositories with patterns (* within a part of the path, ** across parts, {account}, {group}),
#         or catalog = true (the list of all repositories)
# Doing:  actions = ["pull", "push", "delete"]; to push, a registry needs pull as well
# Only:   services = ["…"], networks = ["192.0.2.0/24"]; effect = "deny" takes away

[[access]]
accounts = [$account]
repositories = ["**"]
catalog = true
actions = ["pull", "push", "delete"]

# Everyone has the repositories below their own name.
[[access]]
authenticated = true
repositories = ["{account}/**"]
actions = ["pull", "push", "delete"]

#[[access]]
#groups = ["developers"]
#repositories = ["team/**"]
#actions = ["pull", "push"]

# Without login:
#[[access]]
#everyone = true
#repositories = ["public/**"]
#actions = ["pull"]
""")

REGISTRY: Final = Template("""\
# Configuration of the registry (Distribution 2.x and 3.x) that trusts this tokenissuer.
# Start it with:  registry serve $file_plain    (Debian: docker-registry serve)
version: 0.1
log:
  level: info
storage:
  filesystem:
    rootdirectory: $storage
  delete:
    enabled: true
http:
  # Only for this machine. For others put a proxy with TLS in front.
  addr: 127.0.0.1:5000
auth:
  token:
    realm: $realm
    service: $service
    issuer: $issuer
    rootcertbundle: $certificate
""")
