"""Container images under the names that conf/ has, made of this machine's programs: none can be pulled in a test."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from functools import cache
from pathlib import Path

#: What a Python says about itself.
_FACTS = """
import json, os, sys, sysconfig, pip
print(json.dumps([
    "python%d.%d" % sys.version_info[:2], os.path.realpath(sys._base_executable), sysconfig.get_path("stdlib"),
    os.path.dirname(pip.__file__),
]))
"""
_SKIPPED = re.compile(
    r"(^|/)(__pycache__|test|tests|site-packages|dist-packages|idlelib|tkinter|turtledemo|config-[^/]*)(/|$)"
    r"|\.(pyc|a)$|(^|/)EXTERNALLY-MANAGED$|_(tkinter|test[a-z]*)\."
)

NGINX = """
user nginx;
pid /run/nginx.pid;
error_log /dev/stderr notice;
events {}
http {
    access_log /dev/stdout;
    client_body_temp_path /var/cache/nginx/client_temp;
    proxy_temp_path /var/cache/nginx/proxy_temp;
    fastcgi_temp_path /var/cache/nginx/fastcgi_temp;
    uwsgi_temp_path /var/cache/nginx/uwsgi_temp;
    scgi_temp_path /var/cache/nginx/scgi_temp;
    include /etc/nginx/conf.d/*.conf;
}
"""


class Root:
    """The files of an image, as an archive for `docker import`."""

    def __init__(self) -> None:
        self._file = io.BytesIO()
        self._tar = tarfile.TarFile(fileobj=self._file, mode="w")
        self._names: set[str] = set()
        self.text("/etc/passwd", "root:x:0:0::/root:/bin/sh\nnginx:x:101:101::/nonexistent:/bin/false\n")
        self.text("/etc/group", "root:x:0:\nnginx:x:101:\n")
        self.folder("/tmp", 0o1777)
        self.folder("/run")

    def folder(self, name: str, mode: int = 0o755) -> None:
        """A folder: the engine would let nobody but root into one that is not listed."""
        if name not in self._names:
            self._add(name, tarfile.DIRTYPE, mode)

    def _add(self, name: str, kind: bytes, mode: int = 0o755, content: bytes = b"", target: str = "") -> None:
        for parent in reversed(Path(name).parents):
            if str(parent) not in ("/", *self._names):
                self.folder(str(parent))
        self._names.add(name)
        entry = tarfile.TarInfo(name.lstrip("/"))
        entry.type, entry.mode, entry.size, entry.linkname = kind, mode, len(content), target
        self._tar.addfile(entry, io.BytesIO(content))

    def text(self, name: str, content: str, mode: int = 0o644) -> None:
        """A text file."""
        self._add(name, tarfile.REGTYPE, mode, content.encode())

    def link(self, name: str, target: str) -> None:
        """A symbolic link."""
        self._add(name, tarfile.SYMTYPE, target=target)

    def file(self, source: Path, name: str) -> None:
        """A file of this machine, owned by root."""
        if name not in self._names:
            self._add(name, tarfile.REGTYPE, source.stat().st_mode & 0o755, source.read_bytes())

    def tree(self, source: Path, name: str, *, everything: bool = False) -> None:
        """A folder, without what an image of Python has not."""
        for path in sorted(source.rglob("*")):
            inner = str(path.relative_to(source))
            if path.is_file() and (everything or not _SKIPPED.search(inner)):
                self.file(path, f"{name}/{inner}")

    def program(self, source: Path, name: str) -> None:
        """A program with the libraries that it needs."""
        self.file(source, name)
        self.libraries(source)

    def libraries(self, source: Path) -> None:
        """The libraries that a program or library needs, where it looks for them."""
        said = subprocess.run(["ldd", str(source)], capture_output=True, text=True, check=False, timeout=20).stdout
        for path in re.findall(r"(?m)(?:=>\s+|^\s+)(/\S+) \(", said):
            self.file(Path(path), path)

    def content(self) -> bytes:
        """The archive."""
        self._tar.close()
        return self._file.getvalue()


@cache
def interpreter() -> str:
    """A Python of the version that the image has, or the one that runs the tests."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    found = ["/usr/bin/python3.13", "/usr/local/bin/python3.13", *map(str, pyenv.glob("versions/3.13.*/bin/python"))]
    for command in found:
        check = [command, "-c", "import pip, ssl, sqlite3"]
        if (
            os.access(command, os.X_OK)
            and not subprocess.run(check, check=False, timeout=30, capture_output=True).returncode
        ):
            return command
    return sys.executable


def python(command: str, wheels: Path) -> bytes:
    """Stands in for python:3.13-slim: a Python of this machine in /usr/local, without compiled modules as there.

    Its pip installs from the files it is given, for there is no network.
    """
    said = subprocess.run([command, "-c", _FACTS], capture_output=True, text=True, check=True, timeout=30).stdout
    name, binary, stdlib, pip = json.loads(said)
    root = Root()
    root.program(Path(binary), f"/usr/local/bin/{name}")
    for other in ("python3", "python"):
        root.link(f"/usr/local/bin/{other}", name)
    library = f"/usr/local/lib/{name}"
    root.tree(Path(stdlib), library)
    for path in Path(stdlib, "lib-dynload").glob("*.so"):
        if not _SKIPPED.search(path.name):
            root.libraries(path)
    root.tree(Path(pip), f"{library}/pip", everything=True)
    script = "import sys\nfrom pip._internal.cli.main import main\nsys.exit(main())\n"
    root.text("/usr/local/bin/pip", f"#!/usr/local/bin/python3\n{script}", 0o755)
    root.tree(wheels, "/wheelhouse", everything=True)
    root.text("/etc/pip.conf", "[global]\nno-index = true\nfind-links = /wheelhouse\n")
    root.program(Path("/bin/sh"), "/bin/sh")
    # What compiled packages may expect of every Linux.
    for name in (
        "libc.so.6",
        "libm.so.6",
        "libpthread.so.0",
        "libdl.so.2",
        "librt.so.1",
        "libutil.so.1",
        "libgcc_s.so.1",
    ):
        for path in Path("/lib").glob(f"*-linux-gnu/{name}"):
            root.file(path, str(path))
    return root.content()


def nginx(program: str) -> bytes:
    """Stands in for nginx: Debian's nginx, with the configuration that the image has."""
    root = Root()
    root.program(Path(program), "/usr/sbin/nginx")
    root.text("/etc/nginx/nginx.conf", NGINX)
    for name in ("/etc/nginx/conf.d", "/etc/nginx/ssl", "/var/cache/nginx", "/var/log/nginx", "/var/lib/nginx"):
        root.folder(name)
    return root.content()


def registry(program: str) -> bytes:
    """Stands in for registry:3: the same program, built here."""
    root = Root()
    root.program(Path(program), "/bin/registry")
    root.folder("/var/lib/registry")
    return root.content()


def which(name: str) -> str | None:
    """The program as the machine's packages have it."""
    return shutil.which(name, path="/usr/sbin:/usr/bin:/sbin:/bin")
