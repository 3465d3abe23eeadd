"""A file of random bytes behind a TLS server on loopback, for the benchmarks of downloads."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from companion_core.system.state_files import write_private
from companion_core.testing.certificate_authority import CertificateAuthority

__all__ = ["Served", "make_file", "serve_file"]

_BLOCK_BYTES: Final = 8 << 20
_NAME: Final = "m.bin"

_NGINX: Final = """
worker_processes 1; daemon off; pid {folder}/nginx.pid; error_log {folder}/errors;
events {{ worker_connections 512; }}
http {{
  access_log off; sendfile on;
  client_body_temp_path {folder}/a; proxy_temp_path {folder}/b; fastcgi_temp_path {folder}/c;
  uwsgi_temp_path {folder}/d; scgi_temp_path {folder}/e;
  server {{
    listen 127.0.0.1:{port} ssl; root {folder}/www; ssl_buffer_size 16k;
    ssl_certificate {folder}/chain.pem; ssl_certificate_key {folder}/chain.pem;
    location /gigabit/ {{ alias {folder}/www/; limit_rate 119m; }}
  }}
}}
"""


@dataclass(frozen=True)
class Served:
    """The file, and where it is served.

    Attributes:
        gigabit_url: serves each connection as fast as a line of 1 Gbit/s would.
    """

    folder: Path
    url: str
    gigabit_url: str
    ca_file: Path
    size: int
    sha256: str


def make_file(path: Path, size: int) -> str:
    """Fill a file with random bytes and return its SHA-256."""
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for start in range(0, size, _BLOCK_BYTES):
            block = os.urandom(min(_BLOCK_BYTES, size - start))
            digest.update(block)
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()


@contextlib.contextmanager
def serve_file(size: int, near: Path) -> Iterator[Served]:
    """Serve a file of so many bytes with nginx, over TLS; everything is deleted afterwards.

    Args:
        size: in bytes.
        near: a folder on the disk that is to be measured, with room for the file three times.
    """
    nginx = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
    if nginx is None:
        sys.exit("this needs nginx; on Debian: apt-get install nginx-light")
    with tempfile.TemporaryDirectory(prefix="bench-download-", dir=near) as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "www").mkdir(mode=0o755)
        sha256 = make_file(folder / "www" / _NAME, size)
        authority = CertificateAuthority(folder)
        write_private(folder / "chain.pem", authority.server_pem("127.0.0.1"))
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
        (folder / "nginx.conf").write_text(_NGINX.format(folder=folder, port=port))
        command = [nginx, "-p", str(folder), "-c", str(folder / "nginx.conf")]
        with subprocess.Popen(command, stderr=subprocess.DEVNULL) as server:
            try:
                _wait_for(port)
                root = f"https://127.0.0.1:{port}"
                urls = f"{root}/{_NAME}", f"{root}/gigabit/{_NAME}"
                yield Served(folder, *urls, authority.ca_file, size, sha256)
            finally:
                server.terminate()


def _wait_for(port: int) -> None:
    deadline = time.monotonic() + 20
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            return
        if time.monotonic() > deadline:
            sys.exit("nginx did not start")
        time.sleep(0.05)
