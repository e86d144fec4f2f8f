"""The static check that nothing an NMI reaches is traced (S12)."""

import pytest

from dynftrace_emu.errors import ImageError
from dynftrace_emu.kernel.callgraph import nmi_check
from dynftrace_emu.kernel.image import KernelImage
from dynftrace_emu.kernel.mini_kernel import mini_kernel

MCOUNT = '.include "arch/mcount.S"\nENTRY startup_64\nhlt\nEND startup_64\n'


def check(text, entry="nmi"):
    image = KernelImage.from_assembly(MCOUNT + text)
    return image, nmi_check(image, entry)


def test_the_mini_kernel_is_clean_and_all_of_its_nmi_path_was_walked(dynamic):
    found = nmi_check(dynamic)
    assert found.clean
    assert (found.path, found.site) == ((), None)
    assert set(found.reached) == {
        "nmi", "ftrace_interrupted", "do_nmi", "default_do_nmi", "nmi_watchdog_tick", "die_nmi",
    }  # fmt: skip


def test_the_broken_one_is_caught_with_the_path_to_the_call():
    image = mini_kernel(name="mini-kernel-nmi-broken")
    found = nmi_check(image)
    assert not found.clean
    assert found.path == ("nmi", "do_nmi", "default_do_nmi", "nmi_watchdog_tick")
    assert found.site == image.address("nmi_watchdog_tick") + 4
    assert found.site in image.call_sites.tolist()


@pytest.mark.parametrize("order", [("long_way", "short_way"), ("short_way", "long_way")])
def test_the_path_is_a_shortest_one(order):
    _, found = check(f"""
    ENTRY nmi
        call {order[0]}
        call {order[1]}
        iretq
    END nmi
    ENTRY long_way
        call longer
        ret
    END long_way
    ENTRY longer
        call bad
        ret
    END longer
    ENTRY short_way
        call bad
        ret
    END short_way
    FUNC bad
        RETURN
    END bad
    """)
    assert found.path == ("nmi", "short_way", "bad")


@pytest.mark.parametrize("jump", ["jmp bad", "je bad", "loop bad", "call bad"])
def test_tail_calls_and_conditional_jumps_are_followed(jump):
    _, found = check(f"""
    ENTRY nmi
        {jump}
        iretq
    END nmi
    FUNC bad
        RETURN
    END bad
    """)
    assert found.path == ("nmi", "bad")


@pytest.mark.parametrize("way", ["call helper", "jmp helper", "nop"])
def test_code_that_no_symbol_declares_a_function_is_walked_too(way):
    """A plain label, reached by a call, a jump, or by running on behind the end of nmi."""
    _, found = check(f"""
    ENTRY nmi
        {way}
    END nmi
    helper:
        call mcount
        iretq
    """)
    assert not found.clean


def test_recursion_ends_and_jumps_within_a_function_lead_nowhere():
    _, found = check("""
    ENTRY nmi
    1:  dec ecx
        jnz 1b
        call other
        iretq
    END nmi
    ENTRY other
        call nmi
        call other
        ret
    END other
    """)
    assert found.clean
    assert set(found.reached) == {"nmi", "other"}


def test_calls_through_pointers_are_told():
    image, found = check("""
    ENTRY nmi
        call rax
        jmp [rip + 1f]
    1:  iretq
    END nmi
    """)
    assert found.clean
    nmi = image.address("nmi")
    assert found.indirect == (nmi, nmi + 2)


def test_another_entry_can_be_named():
    _, found = check("FUNC tick\nRETURN\nEND tick", entry="tick")
    assert found.path == ("tick",)


@pytest.mark.parametrize("entry", ["nmi", "ftrace_hash"])
def test_an_image_without_that_function_is_an_error(entry):
    with pytest.raises(ImageError, match=f"no function {entry}"):
        check("", entry)
