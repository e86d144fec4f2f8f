"""``inspect``: an image without running it, and the check of its NMI path."""

from __future__ import annotations

import json

import pytest


@pytest.fixture
def contents(cli) -> dict:
    result = cli("inspect", "--json")
    assert (result.code, result.err) == (0, "")
    return json.loads(result.out)


def test_json_has_functions_sites_and_notrace(contents: dict) -> None:
    assert contents["schema"] == 1
    assert contents["image"] == "mini-kernel"
    names = {function["name"] for function in contents["functions"]}
    assert {"start_kernel", "vfs_read", "mcount", "nmi"} <= names
    assert set(contents["notrace"]) <= names
    assert len(contents["call_sites"]) >= 200
    traced = {site["function"] for site in contents["call_sites"]}
    assert traced == names - set(contents["notrace"])


def test_each_site_is_shown_as_call_jmp_and_nop(contents: dict) -> None:
    addresses = {f["name"]: int(f["address"], 16) for f in contents["functions"]}
    for site in contents["call_sites"]:
        address = int(site["address"], 16)
        assert address == addresses[site["function"]] + 4
        displacement = (addresses["mcount"] - address - 5) & 0xFFFF_FFFF
        call = b"\xe8" + displacement.to_bytes(4, "little")
        assert bytes.fromhex(site["call"]["bytes"]) == call
        assert site["call"]["text"] == f"call {addresses['mcount']:#x}"
        assert bytes.fromhex(site["jmp"]["bytes"]) == b"\xeb\x03" + call[2:]
        assert site["jmp"]["text"] == f"jmp {address + 5:#x}"
        assert site["nop"] == {"bytes": "0f 1f 44 00 00", "text": "nop dword ptr [rax + rax]"}


def test_the_text_says_the_same(cli, contents: dict) -> None:
    result = cli("inspect")
    assert (result.code, result.err) == (0, "")
    head = result.out.splitlines()[0]
    assert f"{len(contents['functions'])} functions" in head
    assert f"{len(contents['call_sites'])} call sites" in head
    assert f"{len(contents['notrace'])} notrace" in head
    for site in contents["call_sites"]:
        assert f"{site['address']}  {site['function']}  ({site['source']})\n" in result.out
        for kind in ("call", "jmp", "nop"):
            assert f"{kind:<4} {site[kind]['bytes']}  {site[kind]['text']}" in result.out
    listed = result.out[result.out.index("Notrace functions:") :]
    assert all(f"  {name}  (" in listed for name in contents["notrace"])


def test_a_kernel_built_without_calls_has_no_sites(cli) -> None:
    contents = json.loads(cli("inspect", "--json", "--variant", "none").out)
    assert contents["call_sites"] == []
    assert len(contents["notrace"]) == len(contents["functions"])


def test_the_nmi_check_of_the_kernel_is_clean(cli) -> None:
    result = cli("inspect", "--nmi-check")
    assert result.code == 0
    assert "none calls mcount" in result.out
    document = json.loads(cli("inspect", "--nmi-check", "--json").out)
    assert document["clean"] is True
    assert document["path"] == []
    assert {"nmi", "do_nmi", "nmi_watchdog_tick"} <= set(document["reached"])


def test_the_nmi_check_of_the_broken_kernel_shows_the_path(cli) -> None:
    path = ["nmi", "do_nmi", "default_do_nmi", "nmi_watchdog_tick"]
    result = cli("inspect", "--nmi-check", "mini-kernel-nmi-broken")
    assert result.code == 1
    shown = [line.strip() for line in result.out.splitlines()[1:]]
    assert shown == [*path, "mcount"]
    as_json = cli("inspect", "--nmi-check", "--json", "mini-kernel-nmi-broken")
    assert as_json.code == 1
    document = json.loads(as_json.out)
    assert (document["clean"], document["path"]) == (False, path)


def test_the_nmi_check_follows_jumps_and_tells_of_what_it_cannot_follow(cli, tmp_path) -> None:
    (tmp_path / "guest.S").write_text(
        """
.include "linkage.inc"
ENTRY startup_64
        hlt
END startup_64
ENTRY nmi
        call rax
        jmp tail
END nmi
ENTRY tail
        jz traced
        iretq
END tail
FUNC traced
        RETURN
END traced
ENTRY mcount
        ret
END mcount
"""
    )
    result = cli("inspect", "--nmi-check", "./guest.S")
    assert result.code == 1
    assert "traced+0x4" in result.out
    assert "nmi+0x0" in result.err
    assert "cannot be followed" in result.err
