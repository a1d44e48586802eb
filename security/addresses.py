"""Which addresses a setting may name: http or https, no key inside, and nothing that only a machine's own surroundings answer.

Clouds hand out a machine's credentials at link-local addresses to whoever asks from that machine. A configuration that somebody
else wrote must not make this system ask there, by whatever spelling or name. What the operator of a machine allows in its
environment (`MEDR3_ALLOW_HOSTS=host,address`) is allowed.
"""

from __future__ import annotations

import ipaddress
import os
import socket
from urllib.parse import parse_qsl, urlsplit

from security.hiding import is_secret_name

ALLOW = "MEDR3_ALLOW_HOSTS"
METADATA_NAMES = frozenset(
    {"metadata", "metadata.google.internal", "metadata.goog", "instance-data", "instance-data.ec2.internal"}
)
# Providers' services for their own machines that lie outside the link-local networks.
METADATA_ADDRESSES = frozenset(
    map(
        ipaddress.ip_address,
        ("100.100.100.200", "168.63.129.16", "192.0.0.192", "fd00:ec2::254", "fd00:ec2::23", "fd20:ce::254", "fd00:42::42"),
    )
)
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")  # an IPv4 address in its last 32 bits

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def check_url(url: str) -> str:
    """The same URL; a ValueError with one line where a setting must not name it. No line repeats the URL: it may hold a key.

    Example:
        >>> check_url("http://127.0.0.1:8000/v1")
        'http://127.0.0.1:8000/v1'
        >>> check_url("ftp://example.org")
        Traceback (most recent call last):
        ValueError: must begin with http:// or https:// and name a host, like http://127.0.0.1:8000/v1
    """
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or "", parts.port
    except ValueError:
        raise ValueError("is no URL: write it like http://127.0.0.1:8000/v1") from None
    if parts.scheme not in ("http", "https") or not host:
        raise ValueError("must begin with http:// or https:// and name a host, like http://127.0.0.1:8000/v1")
    if parts.username is not None or parts.password is not None:
        raise ValueError("a password in the host would end up in results: put it into an environment variable")
    for name, _ in parse_qsl(parts.query, keep_blank_values=True):
        if is_secret_name(name):
            raise ValueError(
                f"{name} in the address would end up in results: send it in a header, from an environment variable"
            )
    if problem := refusal(host):
        raise ValueError(f"its host {host} {problem}")
    return url


def refusal(host: str) -> str:
    """Why nothing may be sent to this host, by name or address; empty where it may.

    Example:
        >>> refusal("169.254.169.254").split(",")[0], refusal("10.0.0.7"), refusal("0.0.0.0")
        ('is a link-local address', '', 'is no address of a server')
    """
    name = host.rstrip(".").lower()
    if name in allowed_hosts():
        return ""
    mend = f"where clouds hand out credentials: name another, or set {ALLOW}={name} in this machine's environment"
    if name in METADATA_NAMES:
        return f"is the name of a metadata service, {mend}"
    address = as_address(name)
    if address is None:
        return ""
    if address in METADATA_ADDRESSES:
        return f"is the address of a metadata service, {mend}"
    if address.is_link_local:
        return f"is a link-local address, {mend}"
    if address.is_unspecified or address.is_multicast or (address.is_reserved and not address.is_loopback):
        return "is no address of a server"
    return ""


def as_address(host: str) -> Address | None:
    """The address that a host stands for, also where it is spelled as 2852039166, 0xa9fea9fe or ::ffff:169.254.169.254.

    Example:
        >>> as_address("0xa9fea9fe"), as_address("::ffff:169.254.169.254"), as_address("example.org")
        (IPv4Address('169.254.169.254'), IPv4Address('169.254.169.254'), None)
    """
    text = host.strip("[]").partition("%")[0]
    try:
        address: Address = ipaddress.ip_address(text)
    except ValueError:
        try:  # how the C library reads numbers, and with it most clients
            return ipaddress.IPv4Address(socket.inet_aton(text)) if " " not in text else None
        except (OSError, UnicodeError):
            return None
    if isinstance(address, ipaddress.IPv6Address):
        if address in _NAT64:
            return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        return address.ipv4_mapped or address.sixtofour or address
    return address


def allowed_hosts() -> frozenset[str]:
    """What this machine's operator allows."""
    return frozenset(host.strip().rstrip(".").lower() for host in os.environ.get(ALLOW, "").split(",") if host.strip())
