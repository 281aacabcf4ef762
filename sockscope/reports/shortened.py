"""Calls in fewer characters, without taking anything from them that people look for."""

from __future__ import annotations

import re

_SOCKADDR = re.compile(
    r'\{sa_family=AF_INET6?, sin6?_port=htons\((\d+)\), (?:sin_addr="([\d.]+)"|[^{}"]*"([0-9a-f:.]+)"[^{}"]*)\}'
)
"""As strace writes it. A payload cannot match: its quotes are escaped."""
_EPOLL_DATA = re.compile(r"(fd/data=-?\d+), u64=0x[0-9a-f]+")
_REPEATED = re.compile(r'"(\\(?:x[0-9a-f]{2}|.)|[^"\\])\1{11,}"')
"""A payload that is one byte again and again."""


def short(text: str) -> str:
    """Addresses as `{127.0.0.1:80}` where strace writes the whole structure; of epoll's data the number alone; of a
    payload that is one byte again and again a few of these.
    """
    if text.startswith("epoll_"):
        # No payload can be here.
        text = _EPOLL_DATA.sub(r"\1", text)
    return short_addresses(_REPEATED.sub(r'"\1\1\1…"', text))


def short_addresses(text: str) -> str:
    """Addresses as `{127.0.0.1:80}` where strace writes the whole structure."""
    if "{sa_family" not in text:
        return text
    return _SOCKADDR.sub(lambda found: f"{{{found[2] or f'[{found[3]}]'}:{found[1]}}}", text)
