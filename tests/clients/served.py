"""A server for as long as it is needed."""

import signal
import subprocess
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path


def start(krasis, *options):
    """The process and its URL, once the model is ready."""
    ready = Path(tempfile.mkdtemp()) / "ready"
    command = [krasis, "serve", "--port", "0", "--ready-file", ready, *options]
    server = subprocess.Popen(command)
    for _ in range(1200):
        if ready.exists() and ready.read_text().endswith("\n"):
            return server, ready.read_text().strip()
        assert server.poll() is None, f"krasis serve ended with {server.returncode}"
        time.sleep(0.1)
    server.kill()
    raise AssertionError("krasis serve was not ready after two minutes")


@contextmanager
def served(krasis, *options):
    """The URL of a server, which must end cleanly."""
    server, url = start(krasis, *options)
    try:
        yield url
    finally:
        server.send_signal(signal.SIGTERM)
        code = server.wait(timeout=60)
    assert code == 0, f"krasis serve ended with {code}"
