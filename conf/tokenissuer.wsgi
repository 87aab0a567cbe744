# What Apache's mod_wsgi runs (apache.conf); goes to /opt/tokenissuer/tokenissuer.wsgi.
from tokenissuer.wsgi import application  # noqa: F401
