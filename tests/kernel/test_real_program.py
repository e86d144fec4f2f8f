"""A program nobody here wrote: LZ4 (BSD 2-Clause, Yann Collet), from the npm package lz4.

``tests/install_tools.sh`` fetches it; nothing of it is kept here. It is built as firmware, with
what it wants of a C library in a few lines, and for Linux: both compress the same text.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from dynftrace_emu.ftrace.options import RunOptions
from dynftrace_emu.ftrace.run import Run
from dynftrace_emu.tracefs.controls import Controls
from tests.elf_builds import BARE, STYLES, require_gcc, run

LIBRARY = Path(__file__).parents[2] / ".venv/lz4/package/deps/lz4/lib"

PROGRAM = r"""
#include "lz4.h"
#include "lz4hc.h"
#include <stdint.h>
static char text[3000], packed[4000], unpacked[3000];
static uint32_t fold(const char *data, int size)
{
	uint32_t h = 2166136261u;
	for (int i = 0; i < size; i++)
		h = (h ^ (uint8_t)data[i]) * 16777619u;
	return h;
}
static uint32_t state[8192], hc_state[70000];
int main(void)
{
	uint32_t random = 7, result = 0;
	for (unsigned i = 0; i < sizeof(text); i++) {
		random = random * 1103515245u + 12345u;
		text[i] = i % 97 < 60 ? "the quick brown fox "[i % 20] : (char)(random >> 24);
	}
	for (int level = 0; level < 2; level++) {
		int size = level == 0
			? LZ4_compress_fast_extState(state, text, packed, sizeof(text), sizeof(packed), 1)
			: LZ4_compress_HC_extStateHC(hc_state, text, packed, sizeof(text), sizeof(packed), 4);
		int back = LZ4_decompress_safe(packed, unpacked, size, sizeof(unpacked));
		if (size <= 0 || back != (int)sizeof(text))
			return 0;
		if (fold(text, back) != fold(unpacked, back))
			return 1;
		result = result * 31 + fold(packed, size);
	}
	return 2 + (int)(result % 120);
}
"""
# What it calls of a C library; not traced, like libgcc.
LIBC = r"""
#include <stddef.h>
#define QUIET __attribute__((no_instrument_function, patchable_function_entry(0, 0)))
QUIET void *memcpy(void *to, const void *from, size_t n)
{ char *t = to; const char *f = from; while (n--) *t++ = *f++; return to; }
QUIET void *memmove(void *to, const void *from, size_t n)
{
	char *t = to; const char *f = from;
	if (t < f) while (n--) *t++ = *f++; else while (n--) t[n] = f[n];
	return to;
}
QUIET void *memset(void *to, int c, size_t n)
{ char *t = to; while (n--) *t++ = (char)c; return to; }
QUIET void *malloc(size_t n) { (void)n; return 0; }
QUIET void *calloc(size_t n, size_t m) { (void)n; (void)m; return 0; }
QUIET void free(void *p) { (void)p; }
"""


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    """Builds it: flags to a path. One folder for all, so what it takes is written once."""
    require_gcc()
    if not (LIBRARY / "lz4.c").is_file():
        pytest.skip("LZ4's source is not installed: run tests/install_tools.sh")
    folder = tmp_path_factory.mktemp("lz4")
    (folder / "program.c").write_text(PROGRAM)
    sources = [folder / "program.c", LIBRARY / "lz4.c", LIBRARY / "lz4hc.c"]

    def make(name, flags, *more):
        run("gcc", *flags.split(), f"-I{LIBRARY}", "-o", folder / name, *sources, *more)
        return folder / name

    return make


@pytest.fixture(scope="module")
def expected(build):
    return subprocess.run([build("hosted", "-O1")], check=False, timeout=20).returncode


@pytest.mark.parametrize("style", STYLES)
def test_lz4_compresses_in_the_emulator_as_on_linux(build, expected, style, tmp_path):
    assert expected >= 2
    flags = BARE.replace("-static", "-r") + " -fno-builtin -O1 " + STYLES[style]
    libc = tmp_path / "libc.c"
    libc.write_text(LIBC)
    path = build(f"lz4-{style}.o", flags, libc)
    writes = ("current_tracer=function_graph", "buffer_size_kb=2048")
    options = RunOptions(str(path), seconds=60.0, period=0.05, set=writes)
    traced = Run(options)
    controls = Controls(traced)
    traced.execute()
    assert traced.violations() == []
    assert traced.kernel.returned == expected
    assert len(traced.image.call_sites) > 60
    text = controls.files.read("trace")
    assert "LZ4_compress_fast_extState" in text
    assert "LZ4_decompress_safe" in text
