"""A bucket of Google Cloud Storage on this machine: as much of its JSON API as gcsfs and TensorStore ask for.

python tests/fake_storage.py        # serves it until it is stopped; in memory
"""

import base64
import email
import itertools
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import google_crc32c

BUCKET = "bucket"


class Storage:
    """One bucket, held in memory: `objects` has (content, generation) by name."""

    def __init__(self):
        self.objects, self.uploads, self.numbers = {}, {}, itertools.count()
        self.refuses = 0  # a status with which everything is answered
        self._generation, self._lock = 0, threading.Lock()
        handler = type("BucketHandler", (Handler,), {"storage": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.handle_error = lambda *args: None  # clients that have read enough hang up
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def environment(self):
        """The variables that have gcsfs and TensorStore come here."""
        names = ("STORAGE_EMULATOR_HOST", "TENSORSTORE_GCS_HTTP_URL", "GCE_METADATA_ROOT")
        return dict.fromkeys(names, self.url)

    def put(self, name, content):
        """Writes an object."""
        with self._lock:
            self._generation += 1
            self.objects[name] = bytes(content), self._generation

    def names(self, prefix):
        """The objects below a directory, relative to it."""
        return sorted(name.removeprefix(prefix) for name in list(self.objects) if name.startswith(prefix))

    def copy_to(self, prefix, directory):
        """Writes the objects below a directory of the bucket into a local one."""
        for name in self.names(prefix):
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            (directory / name).write_bytes(self.objects[prefix + name][0])

    def close(self):
        """Ends the server."""
        self._server.shutdown()


class Handler(BaseHTTPRequestHandler):
    """Answers one request."""

    protocol_version, disable_nagle_algorithm = "HTTP/1.1", True
    storage: Storage

    def log_message(self, *args):
        """Says nothing."""

    def answer(self, status, body=b"", **headers):
        """Sends bytes, or an object as JSON."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(content))}).items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(content)

    def handle_request(self):
        """Reads it, and finds who answers."""
        url = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(url.query, keep_blank_values=True).items()}
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.storage.refuses or f"/b/{BUCKET}" not in url.path:
            return self.answer(self.storage.refuses or 404, {"error": {"message": "refused"}})
        try:
            if url.path.startswith("/upload/"):
                return self.upload(query, body)
            if found := re.fullmatch(f"(?:/download)?/storage/v1/b/{BUCKET}/o/(.+)", url.path):
                return self.object(found[1], query)
            return self.list(query)
        except KeyError as error:
            return self.answer(404, {"error": {"code": 404, "message": f"no {error}"}})

    do_GET = do_POST = do_PUT = do_DELETE = handle_request

    def facts(self, name):
        """What the storage says of an object."""
        content, generation = self.storage.objects[name]
        times = dict.fromkeys(("timeCreated", "updated"), "2026-01-01T00:00:00.000Z")
        link = f"http://{self.headers['Host']}/download/storage/v1/b/{BUCKET}/o/{name}?alt=media"
        crc32c = base64.b64encode(google_crc32c.value(content).to_bytes(4, "big")).decode()
        numbers = {"size": str(len(content)), "generation": str(generation), "metageneration": "1", "crc32c": crc32c}
        return {"kind": "storage#object", "name": name, "bucket": BUCKET, "mediaLink": link} | numbers | times

    def object(self, path, query):
        """Reads, deletes or renames one."""
        objects = self.storage.objects
        if found := re.fullmatch("(.+)/moveTo/o/(.+)", path):
            self.storage.put(unquote(found[2]), objects.pop(unquote(found[1]))[0])
            return self.answer(200, self.facts(unquote(found[2])))
        name = unquote(path)
        if self.command == "DELETE":
            del objects[name]
            return self.answer(204)
        content, generation = objects[name]
        if query.get("alt") != "media":
            return self.answer(200, self.facts(name))
        headers = {"x-goog-generation": str(generation)}
        if query.get("ifGenerationNotMatch") == str(generation):
            return self.answer(304, **headers)
        part = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if not part:
            return self.answer(200, content, **headers)
        first, last = int(part[1]), min(int(part[2] or len(content)), len(content) - 1)
        if first > last:
            return self.answer(416)
        headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
        return self.answer(206, content[first : last + 1], **headers)

    def list(self, query):
        """The objects, and with a delimiter the directories, below a prefix."""
        prefix, delimiter, items, prefixes = query.get("prefix", ""), query.get("delimiter", ""), [], set()
        for name in sorted(self.storage.objects):
            if not name.startswith(prefix) or not query.get("startOffset", "") <= name < query.get("endOffset", "~"):
                continue
            rest = name.removeprefix(prefix)
            if delimiter and delimiter in rest:
                prefixes.add(prefix + rest.partition(delimiter)[0] + delimiter)
            else:
                items.append(self.facts(name))
        return self.answer(200, {"kind": "storage#objects", "items": items, "prefixes": sorted(prefixes)})

    def upload(self, query, body):
        """Writes an object: all at once (TensorStore), in two parts of a message or in pieces (gcsfs)."""
        storage = self.storage
        if "upload_id" in query:
            name, so_far = storage.uploads[query["upload_id"]]
            so_far += body
            if self.headers["Content-Range"].endswith("/*"):
                return self.answer(308, Range=f"bytes=0-{len(so_far) - 1}")
        elif query["uploadType"] == "resumable":
            number = str(next(storage.numbers))
            storage.uploads[number] = query["name"], bytearray()
            return self.answer(200, {}, Location=f"http://{self.headers['Host']}{self.path}&upload_id={number}")
        elif query["uploadType"] == "multipart":
            head = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
            about, content = email.message_from_bytes(head + body).get_payload()
            name, so_far = json.loads(about.get_payload())["name"], content.get_payload(decode=True)
        else:
            name, so_far = query["name"], body
        wanted = query.get("ifGenerationMatch")
        if wanted is not None and wanted != str(storage.objects.get(name, (b"", 0))[1]):
            return self.answer(412, {"error": {"code": 412, "message": "another generation"}})
        storage.put(name, so_far)
        return self.answer(200, self.facts(name))


if __name__ == "__main__":
    served = Storage()
    print("\n".join(f"export {name}={value}" for name, value in served.environment.items()), flush=True)
    threading.Event().wait()
