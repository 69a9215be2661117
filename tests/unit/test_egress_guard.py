"""What a tenant's endpoint may lead to, in every spelling."""

from __future__ import annotations

import ipaddress
import socket

import pytest

from lakehouse.egress.guard import EgressError, Guard, forbidden

BAD = """
127.0.0.1 127.8.8.8 0.0.0.0 0.1.2.3 10.0.0.1 172.16.0.1 172.31.255.255 192.168.1.1 169.254.169.254 169.254.170.2
100.64.0.1 100.100.100.200 192.0.0.192 198.18.0.1 224.0.0.1 239.255.255.255 240.0.0.1 255.255.255.255 192.0.2.1
::1 :: fe80::1 fc00::1 fd00:ec2::254 ff02::1 fec0::1 2001:db8::1 100::1
::ffff:127.0.0.1 ::ffff:10.0.0.1 ::ffff:169.254.169.254 ::127.0.0.1 ::ffff:0:10.0.0.1
2002:7f00:1:: 2002:a9fe:a9fe:: 64:ff9b::7f00:1 64:ff9b::a9fe:a9fe 64:ff9b:1::a9fe:a9fe
2001:0:4136:e378:8000:63bf:3fff:fdd2 2a00:1450::5efe:10.0.0.1 fe80::1%1
""".split()  # noqa: SIM905
GOOD = """
8.8.8.8 52.216.1.1 172.32.0.1 100.128.0.1 2606:4700::1111 64:ff9b::808:808 2002:808:808::1 ::ffff:8.8.8.8
""".split()  # noqa: SIM905


@pytest.mark.parametrize("text", BAD)
def test_what_is_not_public_is_refused(text: str) -> None:
    assert forbidden(ipaddress.ip_address(text))
    with pytest.raises(EgressError, match=r"must be public|is no host name"):
        Guard().resolve(text, 443)
    with pytest.raises(EgressError, match="must be public"):
        Guard(resolver=lambda *_: ["8.8.8.8", text]).resolve("storage.example", 443)


@pytest.mark.parametrize("text", GOOD)
def test_what_is_public_passes(text: str) -> None:
    assert Guard().resolve(text, 443) == [text]


@pytest.mark.parametrize(
    "host",
    [
        "2130706433",
        "0x7f000001",
        "0177.0.0.1",
        "127.1",
        "0x7f.0.0.1",
        "127.0.0.1.",
        "１２７.0.0.1",
        "a b",
        "",
        "-x",
        "[::1]",
    ],
)
def test_odd_spellings_of_loopback_are_refused(host: str) -> None:
    with pytest.raises(EgressError):
        Guard().resolve(host, 80)


def test_a_name_that_leads_home_is_refused() -> None:
    with pytest.raises(EgressError, match=r"localhost:443: leads to (127\.0\.0\.1|::1), which is loopback"):
        Guard().resolve("localhost", 443)


def test_a_name_without_an_address() -> None:
    def nobody(host: str, port: int) -> list[str]:
        raise socket.gaierror("Name or service not known")

    with pytest.raises(EgressError, match=r"nobody\.example:443: its name has no address"):
        Guard(resolver=nobody).resolve("nobody.example", 443)


def test_the_operators_list_is_the_one_exception() -> None:
    home = {"minio.internal": "10.1.2.3", "other.internal": "10.9.9.9"}
    guard = Guard(
        ("minio.internal:9000", "127.0.0.0/8", "fd12::/16", "Plain.Host"), lambda h, _: [home.get(h, "10.0.0.1")]
    )
    assert guard.resolve("MinIO.internal", 9000) == ["10.1.2.3"]
    assert guard.resolve("127.0.0.1", 1) and guard.resolve("fd12::1", 1) and guard.resolve("plain.host", 1)
    for host, port in (("minio.internal", 9001), ("other.internal", 9000), ("fd13::1", 1), ("10.1.2.3", 9000)):
        with pytest.raises(EgressError):
            guard.resolve(host, port)


@pytest.mark.parametrize("entry", ["10.0.0.1/8", "a b", "http://x", "x:99999", ""])
def test_a_bad_list_is_named(entry: str) -> None:
    with pytest.raises(EgressError, match="LAKEHOUSE_EGRESS__ALLOW"):
        Guard((entry,))


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("ftp://storage.example", "must look like"),
        ("https://", "must look like"),
        ("storage.example", "must look like"),
        ("https://key:canary-in-url@storage.example", "must not hold credentials"),
        ("https://storage.example?x=canary-in-url", "must not hold credentials"),
        ("http://storage.example", "must be https"),
        ("https://storage.example:99999", "no URL"),
        ("https://localhost", "must be public"),
    ],
)
def test_endpoints_as_they_are_saved(url: str, message: str) -> None:
    guard = Guard(resolver=lambda host, _: ["127.0.0.1"] if host == "localhost" else ["8.8.8.8"])
    with pytest.raises(EgressError, match=message) as caught:
        guard.check_url(url)
    assert "canary" not in str(caught.value)
    assert guard.check_url("https://Storage.example./") == ("storage.example", 443)
