# What Apache's mod_wsgi runs (conf/apache.conf).
from tokenissuer.wsgi import application  # noqa: F401
