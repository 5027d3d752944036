"""Numbers of bytes, as people write and read them."""

from __future__ import annotations

import re

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


def parse_bytes(text: str, name: str) -> int:
    """A number of bytes written as "20GB", "500 MB" or "1e9"."""
    match = re.fullmatch(r"\s*([0-9.]+(?:e[0-9]+)?)\s*([KMGT]?)(?:i?B)?\s*", text, re.IGNORECASE)
    try:
        size = int(float(match[1]) * _UNITS[match[2].upper()]) if match is not None else 0
    except ValueError:
        size = 0
    if size <= 0:
        raise ValueError(f'{name} must be a size such as "20GB" or "500MB". Got {text!r} instead.')
    return size


def format_bytes(n: float) -> str:
    """A number of bytes for people: "5.0 GB"."""
    for unit in ("B", "kB", "MB", "GB"):
        if n < 1000:
            return f"{n:.0f} {unit}" if unit == "B" else f"{n:.1f} {unit}"
        n /= 1000
    return f"{n:.1f} TB"
