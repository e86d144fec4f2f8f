"""``dynftrace-emu inspect``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from dynftrace_emu.cli.options import checked_variant, image_argument, json_option, variant_option

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dynftrace_emu.kernel.callgraph import NmiCheck
    from dynftrace_emu.kernel.image import KernelImage, Symbol

__all__ = ["inspect"]

SCHEMA = 1


@click.command(
    epilog="\b\nExamples:\n  dynftrace-emu inspect --json\n"
    "  dynftrace-emu inspect --nmi-check mini-kernel-nmi-broken"
)
@image_argument()
@variant_option()
@click.option(
    "--nmi-check",
    "check_nmi",
    is_flag=True,
    help="Walk the call graph from the NMI entry; exit 1 if it reaches a call to mcount.",
)
@click.option(
    "--nmi-entry",
    default="nmi",
    show_default=True,
    metavar="SYMBOL",
    help="Where that walk begins.",
)
@json_option("Print one JSON document.")
def inspect(image: str, variant: str | None, check_nmi: bool, nmi_entry: str, as_json: bool) -> int:
    """Show IMAGE's functions, call sites and notrace functions, without running it."""
    from dynftrace_emu.cli.warnings import warn_of_debug_info
    from dynftrace_emu.kernel.callgraph import nmi_check
    from dynftrace_emu.kernel.mini_kernel import load_image

    kernel = load_image(image, checked_variant(image, variant))
    if check_nmi:
        check = nmi_check(kernel, nmi_entry)
        _show_check(kernel, check, as_json=as_json)
        return 0 if check.clean else 1
    contents = _contents(kernel)
    warn_of_debug_info(kernel)
    if as_json:
        click.echo(_json(contents))
    else:
        click.echo("\n".join(_lines(contents)))
    return 0


def _json(contents: dict[str, Any]) -> str:
    """JSON with a line for each item of a list: there may be 50,000, and ``indent`` is slow."""
    fields = [f"  {json.dumps(name)}: {_json_value(value)}" for name, value in contents.items()]
    return "{\n" + ",\n".join(fields) + "\n}"


def _json_value(value: Any) -> str:
    if not isinstance(value, list) or not value:
        return json.dumps(value)
    return "[\n" + ",\n".join(f"    {json.dumps(item)}" for item in value) + "\n  ]"


def _contents(image: KernelImage) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "image": image.name,
        "variant": image.variant,
        "sha256": image.sha256,
        "functions": [_function(image, function) for function in image.functions],
        **_style(image),
        "call_sites": list(_sites(image)),
        "notrace": [function.name for function in image.notrace],
    }


def _function(image: KernelImage, function: Symbol) -> dict[str, Any]:
    from dynftrace_emu.kernel.debug.demangle import demangle

    readable = demangle(function.name)
    return {
        "name": function.name,
        **({"demangled": readable} if readable != function.name else {}),
        "address": f"{function.address:#x}",
        "size": function.size,
        "source": image.source_line(function.address),
    }


def _style(image: KernelImage) -> dict[str, Any]:
    """How an ELF image's compiler made its call sites, and what the table says of them."""
    from dynftrace_emu.kernel.elf.image import ElfImage

    if not isinstance(image, ElfImage):
        return {}
    sites, table = image.sites, image.sites.table
    entry = image.file_entry
    return {
        "entry": None if entry is None else f"{entry:#x}",
        "style": sites.style,
        "mcount_guessed": sites.guessed,
        "table": None
        if table is None
        else {
            "name": table.name,
            "entries": table.entries,
            "sites": len(table.sites),
            "unlisted": [f"{site:#x}" for site in sites.unlisted],
        },
        "returns_by_iret": [f"{site:#x}" for site in image.iret_sites.tolist()],
        "ignored": [{"address": f"{i.address:#x}", "reason": i.reason} for i in sites.ignored],
    }


def _style_lines(contents: dict[str, Any]) -> Iterator[str]:
    if "style" not in contents:
        return
    yield f"Compiled with: {contents['style'] or 'nothing that makes call sites'}"
    if contents["mcount_guessed"]:
        yield "No symbol says where mcount is: it was worked out from its callers."
    for site in contents["call_sites"]:
        if site["address"] in contents["returns_by_iret"]:
            yield (
                f"{_named(site['function'], '')} returns by iret: function_graph and the profiler "
                "leave it out"
            )
    table = contents["table"]
    if table is None:
        yield "No table lists the sites: they are found as they run, or by disassembly."
        return
    line = (
        f"{table['name']} lists {table['entries']} sites; disassembly finds an instruction at each"
    )
    if contents["ignored"]:
        line += f", and at {table['sites']} room for a call"
    yield f"{line}."
    if table["unlisted"]:
        yield f"{len(table['unlisted'])} calls are not in it: {', '.join(table['unlisted'][:4])}"
    for ignored in contents["ignored"]:
        yield f"ignored: {ignored['address']}: {ignored['reason']}"


def _sites(image: KernelImage) -> Iterator[dict[str, Any]]:
    from dynftrace_emu.ftrace.encodings import CALL, JMP, NOP
    from dynftrace_emu.kernel.disassembly import disassemble

    encodings = (CALL, JMP, NOP)
    rows = {e.name: e.rows(image.call_sites, image.mcount or 0) for e in encodings}
    for index, site in enumerate(image.call_sites.tolist()):
        function = image.function_at(site)
        texts = {}
        for name, row in rows.items():
            code = row[index].tobytes()
            texts[name] = {"bytes": code.hex(" "), "text": disassemble(code, site, 1)[0][2]}
        yield {
            "address": f"{site:#x}",
            "function": function.name if function else None,
            "source": image.source_line(site),
            **texts,
        }


def _lines(contents: dict[str, Any]) -> Iterator[str]:
    sites = contents["call_sites"]
    yield (
        f"{contents['image']} ({contents['variant']}): {len(contents['functions'])} functions, "
        f"{len(sites)} call sites, {len(contents['notrace'])} notrace"
    )
    yield from _style_lines(contents)
    yield ""
    yield "Call sites, each as call, jmp and nop:"
    for site in sites:
        yield f"{site['address']}  {_named(site['function'], site['source'])}"
        for name in ("call", "jmp", "nop"):
            yield f"    {name:<4} {site[name]['bytes']}  {site[name]['text']}"
    yield ""
    yield "Notrace functions:"
    notrace = set(contents["notrace"])
    for function in contents["functions"]:
        if function["name"] in notrace:
            yield f"{function['address']}  {_named(function['name'], function['source'])}"


def _named(function: str | None, source: str) -> str:
    from dynftrace_emu.kernel.debug.demangle import demangle

    name = "?" if function is None else demangle(function)
    name += f"  [{function}]" if function not in (None, name) else ""
    return f"{name}  ({source})" if source else name


def _show_check(image: KernelImage, check: NmiCheck, *, as_json: bool) -> None:
    if as_json:
        document = {
            "schema": SCHEMA,
            "image": image.name,
            "entry": check.entry,
            "clean": check.clean,
            "path": list(check.path),
            "site": None if check.site is None else f"{check.site:#x}",
            "reached": list(check.reached),
            "indirect": [f"{site:#x}" for site in check.indirect],
        }
        click.echo(json.dumps(document, indent=2))
        return
    for site in check.indirect:
        click.echo(
            f"note: an indirect call at {image.symbolize(site)} cannot be followed", err=True
        )
    if check.site is None:
        click.echo(f"{len(check.reached)} functions reached from {check.entry}: none calls mcount")
        return
    click.echo(f"an NMI reaches a call to mcount at {image.symbolize(check.site)}:")
    for depth, name in enumerate((*check.path, "mcount")):
        click.echo(f"{'  ' * depth}{name}")
