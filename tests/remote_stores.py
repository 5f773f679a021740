"""Object stores for tests: an emulator of Google's on loopback, one that forbids everything, and one that fails."""

import contextlib
import logging
import os
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer, ThreadingHTTPServer
from threading import Thread

from fsspec.implementations.memory import MemoryFileSystem

BUCKET = "bucket"
# Read when gcsfs is imported; spares questions about the kind of bucket that only Google's own service answers.
os.environ["GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"] = "false"


@contextlib.contextmanager
def emulator() -> Iterator[dict[str, str]]:
    """Yields the environment with which gcsfs talks to an emulator that has one bucket."""
    from gcp_storage_emulator.server import create_server

    logging.getLogger("gcp_storage_emulator").setLevel(
        logging.CRITICAL
    )  # else it tells of each object that is not there
    HTTPServer.request_queue_size = 128  # by default 5 connections may wait; more are tried again after seconds
    server = create_server("localhost", 0, in_memory=True, default_bucket=BUCKET)
    server.start()
    try:
        yield environment(server._api._httpd.server_address[1])
    finally:
        server.stop()


@contextlib.contextmanager
def forbidding() -> Iterator[dict[str, str]]:
    """As `emulator`, of a store whose every answer is 403."""

    class Forbid(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = b'{"error": {"code": 403, "message": "no permission for storage.objects.list"}}'
            self.send_response(403)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_PUT = do_DELETE = do_GET

        def log_message(self, *_) -> None:
            pass

    with ThreadingHTTPServer(("localhost", 0), Forbid) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield environment(server.server_address[1])
        finally:
            server.shutdown()


def environment(port: int) -> dict[str, str]:
    return {"STORAGE_EMULATOR_HOST": f"http://localhost:{port}"}


class Disturbed(MemoryFileSystem):
    """A store in memory that calls `before(number, path)` before each write, which may fail or disturb."""

    cachable = False

    def __init__(self, before: Callable[[int, str], None]):
        super().__init__(skip_instance_cache=True)
        self.store, self.pseudo_dirs, self.writes = {}, [""], 0
        self.before = before

    def pipe_file(self, path, value, mode="overwrite", **kwargs):
        self.before(self.writes, path)
        self.writes += 1
        super().pipe_file(path, value, mode=mode, **kwargs)
