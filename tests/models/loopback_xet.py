"""Files in Xet storage: how a file is laid out in xorbs, and what the storage tells a client that asks for it.

Source: https://huggingface.co/docs/xet (xorb format, download protocol). Chunks have one length and no compression, every file
has its own xorbs, and hashes are made up: the client does not check them when it downloads.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CHUNK = 128 << 10
CHUNKS_IN_XORB = 500
HEADER = 8
ACCESS_TOKEN = "xet_loopback"


@dataclass(frozen=True)
class Xorb:
    """The chunks, each behind its header, of bytes start..stop of a file."""

    hash: str
    path: Path
    start: int
    stop: int
    chunk: int

    @property
    def chunks(self) -> int:
        return -(-(self.stop - self.start) // self.chunk)

    @property
    def size(self) -> int:
        return self.stop - self.start + self.chunks * HEADER

    def parts(self, start: int, stop: int) -> Iterator[bytes | tuple[int, int]]:
        """Yields what bytes start..stop of the xorb are: bytes as they are, or (start, stop) within the file."""
        for index in range(start // (self.chunk + HEADER), self.chunks):
            at = index * (self.chunk + HEADER)
            if at >= stop:
                return
            data = self.start + index * self.chunk
            length = min(self.chunk, self.stop - data)
            size = length.to_bytes(3, "little")
            if header := (b"\0" + size + b"\0" + size)[max(0, start - at) : stop - at]:
                yield header
            first, last = max(0, start - at - HEADER), min(length, stop - at - HEADER)
            if first < last:
                yield data + first, data + last


@dataclass(frozen=True)
class XetFile:
    """A file in Xet storage."""

    hash: str
    size: int
    chunk: int
    xorbs: tuple[Xorb, ...]

    def reconstruction(self, start: int, stop: int, cas: str, version: int) -> dict[str, Any]:
        """Returns what to fetch for bytes start..stop, in version 1 or 2 of the protocol; cas: the endpoint of the xorbs."""
        terms, fetch, first = [], {}, start
        for xorb in self.xorbs:
            low, high = max(start, xorb.start), min(stop, xorb.stop)
            if low >= high:
                continue
            chunks = (low - xorb.start) // self.chunk, -(-(high - xorb.start) // self.chunk)
            data = [min(xorb.start + index * self.chunk, xorb.stop) for index in chunks]
            first = min(first, data[0])
            within = {"start": chunks[0], "end": chunks[1]}
            in_xorb = {"start": chunks[0] * (self.chunk + HEADER), "end": min(chunks[1] * (self.chunk + HEADER), xorb.size) - 1}
            url = f"{cas}/xorbs/{xorb.hash}?X-Xet-Signed-Range=bytes%3D{in_xorb['start']}-{in_xorb['end']}&Signature=signed"
            terms.append({"hash": xorb.hash, "unpacked_length": data[1] - data[0], "range": within})
            ranges = {"url": url, "ranges": [{"chunks": within, "bytes": in_xorb}]}
            fetch[xorb.hash] = [ranges if version == 2 else {"url": url, "range": within, "url_range": in_xorb}]
        return {"offset_into_first_range": start - first, "terms": terms, "xorbs" if version == 2 else "fetch_info": fetch}


def lay_out(path: Path, size: int, sha256: str) -> XetFile:
    """Returns how a file lies in Xet storage."""
    length = CHUNK * CHUNKS_IN_XORB
    starts = range(0, size, length)
    hashes = [hashlib.sha256(f"{sha256} {start}".encode()).hexdigest() for start in starts]
    xorbs = (Xorb(digest, path, at, min(at + length, size), CHUNK) for digest, at in zip(hashes, starts, strict=True))
    return XetFile(hashlib.sha256(sha256.encode()).hexdigest(), size, CHUNK, tuple(xorbs))
