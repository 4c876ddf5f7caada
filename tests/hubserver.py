"""The hub, as a server on this machine that speaks its API."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

OLD, NEW = "a" * 40, "b" * 40


class Hub:
    """Repositories by (kind, id) and commit: name -> content. `cut`: bytes after which a file's first answer ends."""

    def __init__(self) -> None:
        self.repositories: dict[tuple[str, str], dict[str, dict[str, bytes]]] = {}
        self.revisions = {"main": NEW, "v1": OLD, OLD: OLD, NEW: NEW}
        self.asked: list[str] = []
        self.ranges: list[str] = []
        self.cut: dict[str, int] = {}
        self.gated = False
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: Any) -> None:
                pass

            def do_HEAD(self) -> None:
                self.answer(body=False)

            def do_GET(self) -> None:
                self.answer(body=True)

            def answer(self, *, body: bool) -> None:
                outer.asked.append(f"{self.command} {self.path}")
                if outer.gated:
                    self.reply(403, b"{}", {"X-Error-Code": "GatedRepo"}, body=body)
                    return
                match = re.fullmatch(
                    r"/api/(model|dataset)s/([^/]+/[^/]+)/revision/([^/?]+)(\?.*)?", self.path
                )
                if match:
                    self.facts(match[1], match[2], match[3], body=body)
                    return
                match = re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self.path)
                if match:
                    kind = "dataset" if match[1] else "model"
                    self.file(kind, match[2], match[3], match[4], body=body)
                    return
                self.reply(404, b"{}", {}, body=body)

            def commits(
                self, kind: str, name: str, revision: str, *, body: bool
            ) -> tuple[str, dict[str, bytes]] | None:
                found = outer.repositories.get((kind, name))
                commit = outer.revisions.get(revision)
                if found is None or commit not in found:
                    code = "RepoNotFound" if found is None else "RevisionNotFound"
                    self.reply(404, b"{}", {"X-Error-Code": code, "X-Error-Message": code}, body=body)
                    return None
                return commit, found[commit]

            def facts(self, kind: str, name: str, revision: str, *, body: bool) -> None:
                if (found := self.commits(kind, name, revision, body=body)) is not None:
                    files = [{"rfilename": each, "size": len(data)} for each, data in found[1].items()]
                    facts = {"id": name, "sha": found[0], "siblings": files, "private": False, "tags": []}
                    self.reply(
                        200, json.dumps(facts).encode(), {"Content-Type": "application/json"}, body=body
                    )

            def file(self, kind: str, name: str, revision: str, path: str, *, body: bool) -> None:
                if (found := self.commits(kind, name, revision, body=body)) is None:
                    return
                commit, files = found
                if path not in files:
                    headers = {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit}
                    self.reply(404, b"", headers, body=body)
                    return
                data, etag = files[path], hashlib.sha256(files[path]).hexdigest()
                headers = {"ETag": f'"{etag}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
                wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
                if body and wanted:
                    outer.ranges.append(f"{path} from {wanted[1]}")
                    start = int(wanted[1])
                    headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
                    self.reply(206, data[start:], headers, body=True)
                    return
                cut = outer.cut.pop(path, None) if body else None
                self.reply(200, data, headers, body=body, cut=cut)

            def reply(
                self, code: int, data: bytes, headers: dict[str, str], *, body: bool, cut: int | None = None
            ) -> None:
                self.send_response(code)
                for key, value in headers.items():
                    self.send_header(key, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                if body:
                    self.wfile.write(data[:cut])
                if cut is not None:
                    self.wfile.flush()
                    self.close_connection = True

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def put(self, folder: Path, name: str, kind: str = "model") -> None:
        files = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
        self.repositories[kind, name] = {NEW: files, OLD: dict(files)}
