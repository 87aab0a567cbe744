"""The main file of nginx, for a real one that runs in a folder of the test."""

from __future__ import annotations

import os
from pathlib import Path

FILE = """
daemon off;
{user}
pid {folder}/nginx.pid;
worker_processes 2;
events {{ worker_connections 512; }}
http {{
    access_log {folder}/access.log;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    {http}
}}
"""


def nginx_file(folder: Path, http: str) -> str:
    """The main file.

    Args:
        folder: for everything that nginx writes.
        http: what stands in its block `http`, such as servers.
    """
    return FILE.format(folder=folder, user="user root;" if os.geteuid() == 0 else "", http=http)
