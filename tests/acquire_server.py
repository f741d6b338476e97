"""A server on loopback that behaves like TMDB, and misbehaves on demand: for the tests and benchmarks of fetch.

Run as a program it serves until its stdin closes; `serve` starts that program and returns a handle to it. Paths are
TMDB's: /3/genre/movie/list, /3/discover/movie, /3/movie/ID, /t/p/SIZE/NAME.jpg, /p/exports/movie_ids_DATE.json.gz.

Rules make it misbehave. A rule is {"path": regex, "do": KIND, "times": N}: the first N requests of each matching path
get KIND: 404, 429, 429-date, 500, 503; slow, cut, truncated, dribble, dribble-head; gif, html, empty, json (the rule's
`value`), text (its `text`); odd-head; redirect (to its `to`); or the right answer in a packing of PACKINGS.
"""

import argparse
import contextlib
import gzip
import json
import re
import subprocess
import sys
import threading
import time
import urllib.request
import zlib
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from acquire_films import GIF, commented, make_films, make_images
from quiet_server import QuietServer

from genre_dist.genres import GENRES

KEY = "0123456789abcdef0123456789abcdef"
TOKEN = "eyJhbGciOiJIUzI1NiJ9." + "c2VjcmV0" * 8 + ".c2lnbmF0dXJlLXNpZ25hdHVyZQ"
MOST_PAGES = 500
FILMS_PER_PAGE = 20
# What an answer is called (Content-Encoding), and what it is.
PACKINGS = {
    "gzip": ("gzip", gzip.compress),
    "deflate": ("deflate", zlib.compress),
    "deflate-without-head": ("deflate", lambda body: zlib.compress(body)[2:-4]),
    "gzip-unsaid": ("", gzip.compress),
    "gzip-untrue": ("gzip", bytes),
    "deflate-untrue": ("deflate", bytes),
    "gzip-cut": ("gzip", lambda body: gzip.compress(body)[:-9]),
    "gzip-damaged": ("gzip", lambda body: gzip.compress(body)[:-5] + b"wrong"),
    "deflate-cut": ("deflate", lambda body: zlib.compress(body)[:-5]),
    "gzip-bomb": ("gzip", lambda body: gzip.compress(bytes(300 << 20), 1)),
    "large": ("", lambda body: bytes(80 << 20)),
}


# ---- the server -----------------------------------------------------------------------------------------------------


class Server(QuietServer):
    """What the requests share: the films, the rules, and the record of what was asked."""

    def __init__(self, films: list[dict[str, Any]], images: list[bytes], max_posters: int | None) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.films, self.images = films, images
        posters = [film for film in films if film["poster_path"]]
        for film in posters if max_posters is None else posters[max_posters:]:
            film["poster_path"] = film["poster_path"] if max_posters is None else None
        self.by_id = {film["id"]: film for film in films}
        self.found: dict[str, list[dict[str, Any]]] = {}
        self.rules: list[dict[str, Any]] = []
        self.misbehaved: Counter[tuple[int, str]] = Counter()
        self.genres = [{"id": genre.id, "name": genre.name} for genre in GENRES]
        self.max_pages = MOST_PAGES
        self.delay = 0.0
        self.swap_once = False
        self.lock = threading.Lock()
        self.forget()

    def forget(self) -> None:
        """Begin to count anew."""
        self.paths: Counter[str] = Counter()
        self.times: list[float] = []
        self.agents: set[str] = set()
        self.connections = 0

    def rule_for(self, path: str) -> dict[str, Any] | None:
        """The rule that this request falls under, counted."""
        with self.lock:
            for number, rule in enumerate(self.rules):
                if re.search(rule["path"], path):
                    place = (number, path if rule.get("each", True) else "")
                    self.misbehaved[place] += 1
                    if self.misbehaved[place] <= rule["times"]:
                        return rule
        return None


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    server: Server
    packing = ""

    def setup(self) -> None:
        super().setup()
        self.server.connections += 1

    def log_message(self, *_: Any) -> None:
        pass

    def do_POST(self) -> None:
        """Control: set what the body names, give the record."""
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        for name, value in body.get("set", {}).items():
            setattr(self.server, name, value)
        for number, changes in body.get("films", {}).items():
            self.server.by_id[int(number)].update(changes)
            self.server.found.clear()
        if "rules" in body.get("set", {}):
            self.server.misbehaved.clear()
        record = {
            "paths": dict(self.server.paths),
            "times": self.server.times,
            "agents": sorted(self.server.agents),
            "connections": self.server.connections,
        }
        if body.get("forget"):
            self.server.forget()
        self.reply(200, json.dumps(record).encode(), "application/json")

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        key = query.pop("api_key", "") or self.headers.get("Authorization", "").removeprefix("Bearer ")
        asked = f"{url.path}?{json.dumps(query, sort_keys=True)}" if query else url.path
        with self.server.lock:
            self.server.times.append(time.monotonic())
            self.server.paths[asked] += 1
            self.server.agents.add(self.headers.get("User-Agent", ""))
        if self.server.delay:
            time.sleep(self.server.delay)
        self.packing = ""
        rule = self.server.rule_for(asked)
        if rule and self.misbehave(rule):
            return
        if url.path.startswith("/3/"):
            if key not in (KEY, TOKEN):
                return self.reply_json({"status_code": 7, "status_message": "Invalid API key"}, 401)
            return self.api(url.path[3:], query)
        if url.path.startswith("/t/p/"):
            return self.poster(url.path)
        if re.fullmatch(rf"/p/exports/movie_ids_{datetime.now(UTC).date():%m_%d_%Y}\.json\.gz", url.path):
            return self.export()
        self.reply(404, b"not found", "text/plain")

    def api(self, path: str, query: dict[str, str]) -> None:
        if path == "genre/movie/list" or path == "/genre/movie/list":
            return self.reply_json({"genres": self.server.genres})
        if path.endswith("discover/movie"):
            return self.discover(query)
        film = self.server.by_id.get(int(path.rsplit("/", 1)[1])) if re.search(r"movie/\d+$", path) else None
        if film is None:
            return self.reply_json({"status_code": 34, "status_message": "not found"}, 404)
        names = {genre.id: genre.name for genre in GENRES}
        genres = [{"id": number, "name": names[number]} for number in film["genre_ids"]]
        details = {name: value for name, value in film.items() if name != "genre_ids"}
        self.reply_json(details | {"genres": genres, "imdb_id": f"tt{film['id']:07d}"})

    def discover(self, query: dict[str, str]) -> None:
        page = int(query.get("page", "1"))
        if not 1 <= page <= self.server.max_pages:
            message = f"Invalid page: Pages start at 1 and max at {self.server.max_pages}."
            return self.reply_json({"status_code": 22, "status_message": message, "success": False}, 400)
        first, last = query["primary_release_date.gte"], query["primary_release_date.lte"]
        languages = query.get("with_original_language", "").split("|")
        votes = int(query.get("vote_count.gte", "0"))
        question = json.dumps(query | {"page": ""})
        found = self.server.found.get(question)
        if found is None:
            found = [
                film
                for film in self.server.films
                if first <= film["release_date"] <= last
                and (languages == [""] or film["original_language"] in languages)
                and film["vote_count"] >= votes
            ]
            found.sort(key=lambda film: film["release_date"])
            self.server.found[question] = found
        start = (page - 1) * FILMS_PER_PAGE
        listed = found[start : start + FILMS_PER_PAGE]
        if self.server.swap_once and page == 2:  # a film slipped to page 1 after that was read
            self.server.swap_once, listed = False, [found[0], *listed[1:]]
        pages = -(-len(found) // FILMS_PER_PAGE)
        self.reply_json({"page": page, "results": listed, "total_pages": pages, "total_results": len(found)})

    def poster(self, path: str) -> None:
        name = path.rsplit("/", 1)[1]
        number = int(re.sub(r"\D", "", name) or 0)
        self.reply(200, commented(self.server.images[number % 4], name.encode()), "image/jpeg")

    def export(self) -> None:
        lines = (json.dumps({"id": film["id"], "original_title": film["original_title"]}) for film in self.server.films)
        self.reply(200, gzip.compress("\n".join(lines).encode() + b'\n{"id":99999999}\n', 1), "application/gzip")

    def misbehave(self, rule: dict[str, Any]) -> bool:
        """Do what the rule says; whether that was the answer."""
        kind = rule["do"]
        plain = {"gif": (GIF, "image/gif"), "html": (b"<html>busy</html>", "text/html"), "empty": (b"", "image/jpeg")}
        if kind == "slow":
            time.sleep(rule["seconds"])
            return False
        if kind in PACKINGS:
            self.packing = kind
            return False
        if kind in plain:
            self.reply(200, *plain[kind])
        elif kind == "429":
            self.reply(429, b"{}", "application/json", {"Retry-After": str(rule["seconds"])})
        elif kind == "429-date":
            then = datetime.now(UTC) + timedelta(seconds=rule["seconds"])
            self.reply(429, b"{}", "application/json", {"Retry-After": format_datetime(then, usegmt=True)})
        elif kind == "json":
            self.reply_json(rule["value"])
        elif kind == "text":
            self.reply(200, rule["text"].encode("utf-8", "surrogatepass"), "application/json")
        elif kind == "odd-head":
            self.reply(200, b"{}", "application/json", {"no colon\r\n odd": "\x1b[31m", "\x1b]0;": "x"})
        elif kind == "redirect":
            self.reply(302, b"x" * 1000, "text/html", {"Location": rule["to"] + self.path})
        elif kind in ("truncated", "dribble", "dribble-head"):
            head = b"HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\n"
            rest = (
                b"X-Slow: "
                if kind == "dribble-head"
                else b"Content-Length: 5000\r\n\r\n" + self.server.images[0][:1000]
            )
            self.wfile.write(head + rest)
            if kind != "truncated":
                with contextlib.suppress(OSError):
                    for _ in range(rule.get("drops", 1000)):
                        time.sleep(0.05)
                        self.wfile.write(b"x")
            self.close_connection = True
        elif kind == "cut":
            self.close_connection = True
        else:
            self.reply(int(kind), b"{}", "application/json")
        return True

    def reply_json(self, value: Any, status: int = 200) -> None:
        self.reply(status, json.dumps(value).encode(), "application/json;charset=utf-8")

    def reply(self, status: int, body: bytes, kind: str, headers: dict[str, str] | None = None) -> None:
        """Everything in one packet: two would wait for each other's acknowledgement."""
        if self.packing:
            called, pack = PACKINGS[self.packing]
            headers, body = {"Content-Encoding": called}, pack(body)
        lines = [f"HTTP/1.1 {status} \x1b[31mX", f"Content-Type: {kind}", f"Content-Length: {len(body)}"]
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        self.wfile.write("\r\n".join([*lines, "", ""]).encode() + body)


# ---- the handle -----------------------------------------------------------------------------------------------------


class Handle:
    """A server in another process."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"

    def control(self, **body: Any) -> dict[str, Any]:
        """Set attributes of the server (`set`), change films (`films`), `forget` the record; returns the record."""
        request = urllib.request.Request(self.url, json.dumps(body).encode(), method="POST")
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=30) as answer:
            return json.load(answer)

    def arguments(self, out: Path) -> list[str]:
        """The options that send `genre-dist fetch` here."""
        places = {"--api_url": "", "--image_url": "/t/p", "--export_url": "/p/exports"}
        return ["fetch", "--out", str(out), *(part for name, at in places.items() for part in (name, self.url + at))]


@contextlib.contextmanager
def serve(**options: Any) -> Iterator[Handle]:
    """Start the server with the options of `main`."""
    command = [sys.executable, __file__, *(f"--{name}={value}" for name, value in options.items())]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield Handle(int(process.stdout.readline()))
        finally:
            process.kill()


def most_in_a_second(times: list[float]) -> int:
    """The most requests in any half-open second."""
    most = start = 0
    for end, now in enumerate(times):
        while now - times[start] >= 1.0:
            start += 1
        most = max(most, end - start + 1)
    return most


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--films", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--poster_share", type=float, default=0.9)
    parser.add_argument("--max_posters", type=int)
    parser.add_argument("--undated_share", type=float, default=0.0)
    parser.add_argument("--crowded", type=float, default=0.1)
    parser.add_argument("--width", type=int, default=92)
    parser.add_argument("--height", type=int, default=138)
    arguments = parser.parse_args()
    films = make_films(
        arguments.films, arguments.seed, arguments.poster_share, arguments.undated_share, arguments.crowded
    )
    server = Server(films, make_images((arguments.width, arguments.height)), arguments.max_posters)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(server.server_port, flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
