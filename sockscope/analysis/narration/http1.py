"""HTTP/1 told in words from payload prefixes (RFC 9112). Tolerant: it never raises and never insists.

Of each read or write only the first bytes and the length are known, so framing is followed as far as
those tell; the next start line puts it right again.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, fields, replace
from enum import Enum, StrEnum, auto
from typing import Final

from sockscope.analysis.narration.payload import plain


class Direction(Enum):
    RECEIVED = auto()
    SENT = auto()


class PieceKind(StrEnum):
    REQUEST = "request"
    RESPONSE = "response"
    HEADERS = "headers"
    BODY = "body"
    CHUNK = "chunk"
    LAST_CHUNK = "last chunk"


class _Phase(Enum):
    START = auto()  # a start line is due
    HEAD = auto()  # inside the head, followed exactly
    CUT = auto()  # the prefix ended inside a head: head or body may follow
    BODY = auto()
    CHUNKS = auto()
    TRAILER = auto()  # after the last chunk's size line


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """What one read or write carried.

    Attributes:
        what: in words, without the size: `request GET / HTTP/1.1`.
        method, target: of a request; empty otherwise.
        status: of a response; 0 otherwise.
        body_bytes: bytes of body in this piece, as far as known.
    """

    kind: PieceKind
    what: str
    method: str = ""
    target: str = ""
    status: int = 0
    body_bytes: int = 0


@dataclass(slots=True, kw_only=True)
class _Half:
    phase: _Phase = _Phase.START
    left_bytes: int | None = None
    """Of the body or chunk; None: not known."""
    length: int | None = None
    chunked: bool = False
    bodiless: bool = False
    request: bool = False


@dataclass(slots=True, kw_only=True)
class Http1State:
    """Where both directions of one connection stand."""

    received: _Half = field(default_factory=_Half)
    sent: _Half = field(default_factory=_Half)
    head_requests: int = 0
    """HEAD requests whose response is due (it has no body, whatever its Content-Length)."""


class Standings:
    """Distinct standings, each with a number, so that what follows from one can be looked up; 0: at the beginning."""

    def __init__(self) -> None:
        self._states = [Http1State()]
        self._numbers = {_values(self._states[0]): 0}

    def __len__(self) -> int:
        return len(self._states)

    def state(self, number: int) -> Http1State:
        """A standing of its own, to be brought on."""
        known = self._states[number]
        return replace(known, received=replace(known.received), sent=replace(known.sent))

    def number(self, state: Http1State) -> int:
        """The number of a standing; it must not change any more."""
        number = self._numbers.setdefault(_values(state), len(self._states))
        if number == len(self._states):
            self._states.append(state)
        return number


def _values(state: Http1State) -> tuple[object, ...]:
    halves = (getattr(half, one.name) for half in (state.received, state.sent) for one in fields(_Half))
    return (*halves, state.head_requests)


_METHODS: Final = frozenset(
    b"GET HEAD POST PUT DELETE CONNECT OPTIONS TRACE PATCH PROPFIND PROPPATCH MKCOL COPY MOVE LOCK UNLOCK "
    b"REPORT SEARCH PURGE M-SEARCH NOTIFY SUBSCRIBE".split()
)
_REQUEST: Final = re.compile(rb"(?:\r\n)?([A-Z][A-Z-]{1,19}) ([^ \r\n]+)(?: (HTTP/1\.\d)(\r?\n)|([^\r\n]*)\Z)")
_STATUS: Final = re.compile(rb"(HTTP/1\.\d) (\d{3})(?: ([^\r\n]*))?(\r?\n|\Z)")
_HEADER: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+:[ \t]?")
_HEADER_LINES: Final = re.compile(rb"^[!#$%&'*+\-.^_`|~0-9A-Za-z]+:.*\n", re.MULTILINE)
_LENGTH: Final = re.compile(rb"^content-length:[ \t]*(\d{1,18})[ \t]*\r?\n", re.MULTILINE | re.IGNORECASE)
_CHUNKED: Final = re.compile(rb"^transfer-encoding:[^\r\n]*chunked[ \t]*\r?\n", re.MULTILINE | re.IGNORECASE)
_HEAD_END: Final = re.compile(rb"\r?\n\r?\n")
_EMPTY_LINE: Final = re.compile(rb"\r?\n")
_CHUNK_SIZE: Final = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[^\r\n]*)?\r?\n")
_SMALL_HEAD_BYTES: Final = 1024
_TARGET_SHOWN: Final = 120


def tell(direction: Direction, prefix: bytes, total: int, state: Http1State) -> str:
    """One read or write in words, its size included; empty where it does not look like HTTP/1.

    `request GET /index.html HTTP/1.1 (78 bytes)`, `status line and headers 200 OK, 3 headers (154 bytes)`,
    `body 1204 bytes`, `last chunk`.

    Args:
        prefix: what was copied of the payload.
        total: bytes moved in all.
        state: of the connection; brought up to date.
    """
    piece = narrate(direction, prefix, total, state)
    if piece is None:
        return ""
    if piece.kind is PieceKind.BODY:
        return f"body {total} {'byte' if total == 1 else 'bytes'}"
    return f"{piece.what} ({total} {'byte' if total == 1 else 'bytes'})"


def narrate(direction: Direction, prefix: bytes, total: int, state: Http1State) -> Piece | None:
    """The same as a value; None where it does not look like HTTP/1 (or nothing was moved)."""
    if total <= 0:
        return None
    prefix = prefix[:total]
    half = state.received if direction is Direction.RECEIVED else state.sent
    if half.phase is _Phase.BODY and half.left_bytes:
        return _body(half, total)
    if half.phase is _Phase.CHUNKS and half.left_bytes:
        return _chunks(half, prefix, total)
    if piece := _start(half, prefix, total, state):
        return piece
    if half.phase is _Phase.START:
        return None
    if half.phase is _Phase.TRAILER:
        half.phase = _Phase.START
        return Piece(kind=PieceKind.LAST_CHUNK, what="end of the chunks")
    if half.phase in (_Phase.HEAD, _Phase.CUT) and (prefix[:2] in (b"\r\n", b"\n") or _HEADER.match(prefix)):
        return _head(half, prefix, 0, total, Piece(kind=PieceKind.HEADERS, what="headers"))
    if half.phase is _Phase.CHUNKS or (half.phase is _Phase.CUT and half.length is None and _looks_chunked(prefix)):
        half.phase = _Phase.CHUNKS
        half.left_bytes = 0
        return _chunks(half, prefix, total)
    half.phase = _Phase.BODY
    return _body(half, total)


def _looks_chunked(prefix: bytes) -> bool:
    return prefix[:1] != b"\r" and _CHUNK_SIZE.match(prefix) is not None


def start_line(prefix: bytes, total: int) -> tuple[Piece, int] | None:
    """A request or response by its first line alone, and where that ends; None where it is neither."""
    if found := _STATUS.match(prefix):
        # A reason cut off by the prefix is still worth showing.
        title = f"{found[2].decode('ascii')} {plain(found[3] or b'')}".strip()
        return Piece(kind=PieceKind.RESPONSE, what=title, status=int(found[2])), found.end()
    found = _REQUEST.match(prefix)
    if found is None or (found[3] is None and not _plausible(found, total > len(prefix))):
        return None
    method, target = found[1].decode("ascii"), plain(found[2])
    if len(target) > _TARGET_SHOWN:
        target = target[:_TARGET_SHOWN] + "…"
    elif found[3] is None and not found[5]:
        target += "…"
    version = f" {found[3].decode('ascii')}" if found[3] else ""
    what = f"request {method} {target}{version}"
    return Piece(kind=PieceKind.REQUEST, what=what, method=method, target=target), found.end()


def _start(half: _Half, prefix: bytes, total: int, state: Http1State) -> Piece | None:
    found = start_line(prefix, total)
    if found is None:
        return None
    piece, end = found
    bodiless = False
    if piece.kind is PieceKind.RESPONSE:
        bodiless = piece.status < 200 or piece.status in (204, 304)
        if state.head_requests and piece.status >= 200:
            state.head_requests -= 1
            bodiless = True
    elif piece.method == "HEAD":
        state.head_requests = min(state.head_requests + 1, 1 << 16)
    _begin(half, request=piece.kind is PieceKind.REQUEST, bodiless=bodiless)
    return _head(half, prefix, end, total, piece)


def _plausible(found: re.Match[bytes], cut: bool) -> bool:
    """A request line whose end is not in the prefix: only what cannot well be anything else."""
    rest = found[5] or b""
    return cut and found[1] in _METHODS and (not rest or b" HTTP/1.".startswith(rest[:8]))


def _begin(half: _Half, *, request: bool, bodiless: bool) -> None:
    half.length = None
    half.chunked = False
    half.left_bytes = None
    half.request = request
    half.bodiless = bodiless


def _head(half: _Half, prefix: bytes, start: int, total: int, piece: Piece) -> Piece:
    """Read on in a head from `start`; the piece is completed with what is found."""
    # An empty line right at `start` ends the head; otherwise one after a line.
    end_match = _EMPTY_LINE.match(prefix, start) or _HEAD_END.search(prefix, start)
    ended = end_match is not None
    head = prefix[start : end_match.end() if end_match else len(prefix)]
    header_count = len(_HEADER_LINES.findall(head))
    if found := _LENGTH.search(head):
        half.length = int(found[1])
    half.chunked = half.chunked or _CHUNKED.search(head) is not None
    cut = total > len(prefix) and not ended
    body = total - end_match.end() if end_match else 0
    if ended and end_match is not None:
        _enter_body(half, prefix[end_match.end() :], body)
    else:
        half.phase = _Phase.CUT if cut else _Phase.HEAD
    return Piece(
        kind=piece.kind,
        what=_head_words(piece, header_count, body, total, ended=ended, cut=cut),
        method=piece.method,
        target=piece.target,
        status=piece.status,
        body_bytes=body,
    )


def _head_words(piece: Piece, header_count: int, body: int, total: int, *, ended: bool, cut: bool) -> str:
    count = f"{header_count} {'header' if header_count == 1 else 'headers'}"
    tail = f" and {body} {'byte' if body == 1 else 'bytes'} of body" if body else ""
    if piece.kind is PieceKind.REQUEST:
        return piece.what + tail
    if piece.kind is PieceKind.HEADERS:
        if ended and not header_count:
            return f"end of headers{tail}"
        return "headers" if cut else f"{count}{tail}"
    if cut:
        # A long piece surely carries more than a head.
        return f"status line and headers {piece.what}" if total <= _SMALL_HEAD_BYTES else f"response {piece.what}"
    if not header_count and not ended:
        return f"status line {piece.what}"
    return f"status line and headers {piece.what}, {count}{tail}"


def _enter_body(half: _Half, rest: bytes, body: int) -> None:
    if half.bodiless:
        half.phase = _Phase.START
    elif half.chunked:
        half.phase = _Phase.CHUNKS
        half.left_bytes = 0
        if body:
            _chunks(half, rest, body)
    elif half.length is not None:
        half.left_bytes = half.length - body
        half.phase = _Phase.BODY if half.left_bytes > 0 else _Phase.START
    else:
        # A response without a length lasts until the connection ends; a request has no body then.
        half.left_bytes = None
        half.phase = _Phase.START if half.request else _Phase.BODY


def _body(half: _Half, total: int) -> Piece:
    if half.left_bytes is not None:
        half.left_bytes -= total
        if half.left_bytes <= 0:
            half.phase = _Phase.START
    return Piece(kind=PieceKind.BODY, what="body", body_bytes=total)


def _chunks(half: _Half, prefix: bytes, total: int) -> Piece:
    """Follow chunk sizes as far as the prefix shows them (RFC 9112 section 7.1)."""
    at = sizes = data = 0
    first_size = 0
    while at < total:
        if half.left_bytes:
            step = min(half.left_bytes, total - at)
            # The last two bytes are the chunk's own line break.
            data += min(step, max(0, half.left_bytes - 2))
            half.left_bytes -= step
            at += step
            continue
        found = _CHUNK_SIZE.match(prefix, at)
        if found is None:
            # Beyond the prefix, or no size where one is due: the next piece may begin with one.
            half.left_bytes = 0
            break
        size = int(found[1], 16)
        at = found.end()
        sizes += 1
        first_size = first_size or size
        if size == 0:
            half.phase = _Phase.START if _ends_trailer(prefix, at, total) else _Phase.TRAILER
            what = "last chunk" if sizes == 1 and not data else f"{_some(sizes - 1, data)} and the last chunk"
            return Piece(kind=PieceKind.LAST_CHUNK, what=what, body_bytes=data)
        # The chunk's own line break belongs to it.
        half.left_bytes = size + 2
    if sizes == 0:
        return Piece(kind=PieceKind.BODY, what="body", body_bytes=data)
    what = f"chunk of {first_size} {'byte' if first_size == 1 else 'bytes'}" if sizes == 1 else f"{sizes} chunks"
    return Piece(kind=PieceKind.CHUNK, what=what, body_bytes=data)


def _some(sizes: int, data: int) -> str:
    if not sizes:
        return f"the rest of a chunk ({data} bytes)"
    return "a chunk" if sizes == 1 else f"{sizes} chunks"


def _ends_trailer(prefix: bytes, at: int, total: int) -> bool:
    rest = prefix[at:total]
    return rest[:2] in (b"\r\n", b"\n") or b"\r\n\r\n" in rest or total > at + 2
