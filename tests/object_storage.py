"""Google Cloud Storage in memory: the same objects through `etils.epath` and through its HTTP API.

Objects are read, written and deleted whole, as in the real one: nothing can be renamed or appended
to, and a try raises.
"""

import contextlib
import http.server
import json
import threading
import urllib.parse

import fsspec
from etils.epath import backend


class Bucket(type(fsspec.filesystem("memory"))):
    """What `etils.epath` works on; `written` are the names of objects in order of writing."""

    cachable = False

    def __init__(self):
        super().__init__()
        self.store = {}
        self.pseudo_dirs = [""]
        self.written = []

    def open(self, path, mode="rb", **options):
        assert mode.strip("bt") in ("r", "w"), f"{mode} on an object"
        if "w" in mode:
            self.written.append(self._strip_protocol(path))
        return super().open(path, mode, **options)

    def mv(self, *arguments, **options):
        raise AssertionError("objects cannot be renamed")

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(str(path).replace("gs://", "memory://"))


def in_memory(monkeypatch):
    """Puts a `Bucket` behind every gs:// path for `etils.epath`."""
    files = Bucket()
    monkeypatch.setattr(type(backend.fsspec_backend), "fs", lambda self, path: files)
    return files


@contextlib.contextmanager
def served(files, monkeypatch):
    """The same objects over HTTP, for tensorstore, which Orbax writes arrays with."""
    server = http.server.ThreadingHTTPServer(("localhost", 0), _handler(files))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setenv("TENSORSTORE_GCS_HTTP_URL", f"http://localhost:{server.server_port}")
    monkeypatch.setenv("GOOGLE_AUTH_TOKEN_FOR_TESTING", "token")
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _handler(files):
    generations = {}
    lock = threading.Lock()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def parts(self):
            url = urllib.parse.urlparse(self.path)
            names = url.path.partition("/b/")[2].split("/")
            query = dict(urllib.parse.parse_qsl(url.query))
            name = urllib.parse.unquote(names[2]) if len(names) > 2 else query.get("name")
            return names[0], name, query

        def answer(self, code, content=b"", **headers):
            self.send_response(code)
            for key, value in headers.items():
                self.send_header(key.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *arguments):
            pass

        def do_GET(self):
            bucket, name, query = self.parts()
            with lock:
                if name is None:
                    return self.list(bucket, query)
                path = f"/{bucket}/{name}"
                if path not in files.store:
                    return self.answer(404)
                content = files.store[path].getvalue()
                generation = str(generations.get(path, 1))
            if query.get("ifGenerationNotMatch") == generation:
                return self.answer(304)
            code = 200
            headers = {}
            if (wanted := self.headers.get("Range")) is not None:
                first, _, last = wanted.removeprefix("bytes=").partition("-")
                first, last = int(first), min(int(last or len(content)), len(content) - 1)
                headers["Content_Range"] = f"bytes {first}-{last}/{len(content)}"
                content, code = content[first : last + 1], 206
            self.answer(code, content, x_goog_generation=generation, **headers)

        def list(self, bucket, query):
            start, end = query.get("startOffset", ""), query.get("endOffset")
            prefix = query.get("prefix", "")
            names = sorted(path.removeprefix(f"/{bucket}/") for path in files.store)
            items = [
                {"name": n, "generation": "1", "size": "1"}
                for n in names
                if n.startswith(prefix) and n >= start and (end is None or n < end)
            ]
            self.answer(200, json.dumps({"items": items}).encode())

        def do_POST(self):
            bucket, name, query = self.parts()
            content = self.rfile.read(int(self.headers["Content-Length"]))
            path = f"/{bucket}/{name}"
            with lock:
                current = generations.get(path, 1) if path in files.store else 0
                if str(current) != query.get("ifGenerationMatch", str(current)):
                    return self.answer(412)
                generations[path] = current + 1
                with files.open(path, "wb") as file:
                    file.write(content)
                about = {"name": name, "generation": str(current + 1), "size": str(len(content))}
            self.answer(200, json.dumps(about).encode(), Content_Type="application/json")

        def do_DELETE(self):
            bucket, name, _ = self.parts()
            with lock:
                found = files.store.pop(f"/{bucket}/{name}", None)
            self.answer(204 if found else 404)

    return Handler
