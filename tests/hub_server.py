"""A small Hub on 127.0.0.1: the part of its protocol that fetching a config.json needs.

Files are answered with ETag, X-Repo-Commit and Content-Length; refusals with the status and the
X-Error-Code of the real Hub, so that the real client raises its real errors.
"""

from __future__ import annotations

import hashlib
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "0123456789abcdef0123456789abcdef01234567"
_RESOLVE = re.compile(r"/(?P<repo>[^/]+(?:/[^/]+)?)/resolve/(?P<revision>[^/]+)/config\.json")


@dataclass
class Repo:
    """What the server knows of one model."""

    config: bytes | None = None
    """Content of config.json; None has no such file."""
    refusal: tuple[int, str] | None = None
    """Status and X-Error-Code of every answer."""
    revisions: dict[str, str] = field(default_factory=lambda: {"main": COMMIT, COMMIT: COMMIT})
    cut_after: int | None = None
    """Close the connection after so many bytes of the body."""


class FakeHub:
    """A context manager that serves repositories; ``requests`` records what was asked."""

    def __init__(self, repos: dict[str, Repo]) -> None:
        self.repos = repos
        self.requests: list[tuple[str, str]] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
        )

    @property
    def url(self) -> str:
        """Value for HF_ENDPOINT."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> FakeHub:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self._answer()

            def do_GET(self) -> None:
                self._answer()

            def _answer(self) -> None:
                hub.requests.append((self.command, self.path))
                match = _RESOLVE.fullmatch(self.path)
                repo = hub.repos.get(match["repo"]) if match else None
                if match is None or repo is None:
                    # To a stranger the Hub does not tell a missing repository from a private one.
                    return self._refuse(401, "RepoNotFound")
                if repo.refusal is not None:
                    return self._refuse(*repo.refusal)
                commit = repo.revisions.get(match["revision"])
                if commit is None:
                    return self._refuse(404, "RevisionNotFound")
                if repo.config is None:
                    return self._refuse(404, "EntryNotFound", commit)
                self.send_response(200)
                self.send_header("ETag", f'"{hashlib.sha1(repo.config).hexdigest()}"')
                self.send_header("X-Repo-Commit", commit)
                self.send_header("Content-Length", str(len(repo.config)))
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(repo.config[: repo.cut_after])

            def _refuse(self, status: int, code: str, commit: str = "") -> None:
                self.send_response(status)
                self.send_header("X-Error-Code", code)
                self.send_header("X-Error-Message", code)
                if commit:
                    self.send_header("X-Repo-Commit", commit)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        return Handler
