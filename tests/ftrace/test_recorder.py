"""S1, S2, S4: the recorder in guest code, and the host's hook behind a miss."""

from __future__ import annotations

from collections import defaultdict

import pytest

from dynftrace_emu.ftrace.encodings import JMP, NOP
from dynftrace_emu.machine.vcpu import Reg
from tests.ftrace.tiny_kernel import TRACER, TinyKernel, own_hash_long

FUNCTIONS = [f"f{number}" for number in range(300)]
IF = 1 << 9  # in EFLAGS


# --- S1 ---


def test_before_the_initcall_mcount_leads_to_the_stub_and_nothing_is_recorded() -> None:
    tiny = TinyKernel(initcall=False)
    assert tiny.pointer() == "ftrace_stub"
    tiny.call("f0")
    assert tiny.mcount_calls() == 1
    assert (tiny.traps, tiny.recorded(), tiny.skipped()) == (0, [], {})


def test_the_initcall_puts_the_recorder_in_and_its_own_call_came_too_early() -> None:
    tiny = TinyKernel(initcall=False)
    tiny.call("ftrace_dynamic_init")
    assert tiny.pointer() == "ftrace_record_ip"
    assert tiny.recorded() == []
    tiny.call("f0")
    assert tiny.recorded() == ["f0"]


def test_a_site_that_ran_only_before_the_initcall_stays_an_unrecorded_call(make_run) -> None:
    """Seen from outside: a hook on the load of the pointer, in the whole mini-kernel's boot."""
    run = make_run(vcpus=1, iterations=3, boot_records=1000)
    image = run.image
    stub, recorder = image.address("ftrace_stub"), image.address("ftrace_record_ip")
    led_to = defaultdict(set)
    order = []

    def on_load(vcpu) -> None:
        pointer = run.kernel.read("ftrace_trace_function")
        site = run.machine.memory.read_u64(vcpu[Reg.RSP]) - 5
        led_to[site].add(pointer)
        if not order or order[-1] != pointer:
            order.append(pointer)

    run.machine.vcpus[0].hook_instruction(image.address("mcount_load"), on_load)
    run.execute()

    assert order == [stub, recorder]
    early = {site for site, pointers in led_to.items() if pointers == {stub}}
    names = {image.function_at(site).name for site in early}
    assert {"start_kernel", "setup_arch", "trap_init", "ftrace_dynamic_init"} <= names
    recorded = set(run.dynamic.arch.sites().tolist())
    heard = {site for site, pointers in led_to.items() if recorder in pointers}
    assert recorded <= heard
    assert len(heard - recorded) <= run.kernel.total("skipped_nested")
    assert not early & recorded
    for site in early:
        displacement = (image.mcount - site - 5) & 0xFFFF_FFFF
        assert run.machine.memory.read(site, 5) == b"\xe8" + displacement.to_bytes(4, "little")


# --- S2: the shape ---


def test_the_hash_holds_every_record_in_the_chain_of_its_own_hash_long() -> None:
    tiny = TinyKernel(300, boot_records=300)
    tiny.call_all(FUNCTIONS)
    heads = tiny.address("ftrace_hash")
    found = {}
    for bucket in range(1024):
        place = heads + 8 * bucket
        for node in tiny.chain(bucket):
            assert own_hash_long(node.ip) == bucket
            assert node.pprev == place  # where the pointer to this node lies
            assert tiny.memory.read_u64(node.pprev) == node.address
            assert node.failed == 0
            place = node.address  # node.next is its first field
            found[node.ip] = node.address
    assert set(found) == {tiny.site(name) + 5 for name in FUNCTIONS}
    assert set(found.values()) == {record.address for record in tiny.records()}


def test_a_new_record_becomes_the_head_of_its_chain() -> None:
    tiny = TinyKernel(300, boot_records=300)
    tiny.call_all(FUNCTIONS)
    chains = [chain for bucket in range(1024) if len(chain := tiny.chain(bucket)) > 1]
    assert len(chains) > 10  # 300 sites in 1024 buckets do collide
    for chain in chains:
        addresses = [node.address for node in chain]
        assert addresses == sorted(addresses, reverse=True)  # slots are given out in order


def test_a_known_site_is_found_in_guest_code_wherever_it_is_in_its_chain() -> None:
    tiny = TinyKernel(300, boot_records=300)
    tiny.call_all(FUNCTIONS)
    assert tiny.traps == 300
    tiny.call_all(FUNCTIONS)
    assert tiny.mcount_calls() == 601
    assert (tiny.traps, len(tiny.records()), tiny.skipped()) == (300, 300, {})


def test_the_ip_of_a_record_is_the_return_address_of_the_call() -> None:
    tiny = TinyKernel()
    tiny.call("f3")
    [record] = tiny.records()
    assert record.ip == tiny.address("f3") + 4 + 5
    assert tiny.memory.read(record.ip - 5, 1) == b"\xe8"


def test_mcount_hands_back_every_register_but_r11_whatever_it_leads_to() -> None:
    """The arguments of the traced function are still in registers when mcount is called."""
    tiny = TinyKernel()
    keep = [r for r in Reg if r.name in {"RAX", "RBX", "RCX", "RDX", "RSI", "RDI", "R8", "R9"}]
    keep += [Reg.R10, Reg.R12, Reg.R13, Reg.R14, Reg.R15]

    def check(function: str) -> None:
        cpu = tiny.begin(function)
        tiny.run_to(cpu, tiny.site(function))
        for number, register in enumerate(keep):
            cpu[register] = 0x1111_0000_0000_0000 + number
        before = (cpu[Reg.RSP], cpu[Reg.RBP])
        tiny.run_to(cpu, tiny.site(function) + 5)
        assert [cpu[register] for register in keep] == [
            0x1111_0000_0000_0000 + number for number in range(len(keep))
        ]
        assert (cpu[Reg.RSP], cpu[Reg.RBP]) == before
        tiny.finish(cpu)

    check("f0")  # a miss
    check("f0")  # a hit
    tiny.ftrace.startup()
    check("f0")  # the tracers, directly
    check("f1")  # a miss, then the tracers
    check("f1")  # a hit, then the tracers
    assert tiny.recorded() == ["f0", "f1"]
    assert tiny.kernel.total("traced_calls") == 3
    tiny.ftrace.shutdown()
    check("f2")
    assert tiny.kernel.total("traced_calls") == 3


def test_the_tracers_hold_off_the_scheduler_and_no_interrupt() -> None:
    tiny = TinyKernel()
    tiny.call("f0")
    tiny.ftrace.startup()
    for function, section in (("f0", "caller"), ("f1", "unknown")):
        for flag in (0, IF):
            cpu = tiny.begin(function)
            cpu[Reg.RFLAGS] = cpu[Reg.RFLAGS] & ~IF | flag
            tiny.run_to(cpu, tiny.address(f"__ftrace_{section}_section"))
            assert cpu[Reg.RFLAGS] & IF == flag
            assert tiny.kernel.percpu("preempt_count") == [TRACER]
            tiny.run_to(cpu, tiny.site(function) + 5)
            assert cpu[Reg.RFLAGS] & IF == flag
            assert tiny.kernel.percpu("preempt_count") == [0]
            tiny.finish(cpu)
    assert tiny.kernel.total("traced_calls") == 4


# --- S2: the checks, in their order ---


def test_a_call_from_inside_the_recorder_is_nested_whatever_else_holds() -> None:
    tiny = TinyKernel()
    cpu = tiny.begin("f0")
    tiny.run_to(cpu, tiny.trap_at)
    tiny.kernel.write("ftrace_record_suspended", 1)
    tiny.interrupt_with(cpu, "f1")
    tiny.kernel.write("ftrace_record_suspended", 0)
    assert tiny.skipped() == {"nested": 1}
    tiny.finish(cpu)
    assert tiny.recorded() == ["f0"]
    tiny.call("f1")
    assert tiny.recorded() == ["f0", "f1"]


def test_nesting_is_a_matter_of_one_cpu() -> None:
    tiny = TinyKernel(vcpus=2)
    cpu = tiny.begin("f0", vcpu=0)
    tiny.run_to(cpu, tiny.trap_at)
    tiny.call("f1", vcpu=1)
    tiny.finish(cpu)
    assert tiny.recorded() == ["f1", "f0"]
    assert tiny.skipped() == {}


def test_while_recording_is_suspended_even_a_known_site_counts_as_suspended() -> None:
    tiny = TinyKernel()
    tiny.call("f0")
    tiny.kernel.write("ftrace_record_suspended", 1)
    tiny.call("f0")
    tiny.call("f1")
    assert tiny.skipped() == {"suspended": 2}
    assert tiny.traps == 1


def test_a_known_site_needs_no_slot() -> None:
    tiny = TinyKernel(300)
    tiny.call_all(FUNCTIONS[:145])  # the one page is full
    tiny.call_all(FUNCTIONS[:145])
    assert (tiny.traps, tiny.skipped()) == (145, {})


def test_two_vcpus_that_miss_at_once_make_one_record() -> None:
    tiny = TinyKernel(vcpus=2)
    both = [tiny.begin("f0", vcpu) for vcpu in (0, 1)]
    for cpu in both:
        tiny.run_to(cpu, tiny.trap_at)
    for cpu in both:
        tiny.finish(cpu)
    assert tiny.traps == 2
    assert tiny.recorded() == ["f0"]
    assert tiny.skipped() == {}


def test_two_vcpus_that_miss_at_once_share_the_last_slot() -> None:
    """Looked up again before a slot is asked for: the second vCPU does not go without one."""
    tiny = TinyKernel(300, vcpus=2)
    tiny.call_all(FUNCTIONS[:144])
    both = [tiny.begin("f200", vcpu) for vcpu in (0, 1)]
    for cpu in both:
        tiny.run_to(cpu, tiny.trap_at)
    for cpu in both:
        tiny.finish(cpu)
    assert tiny.recorded()[144:] == ["f200"]
    assert tiny.skipped() == {}


@pytest.mark.parametrize("disabled", [JMP, NOP], ids=lambda encoding: encoding.name)
def test_a_call_that_was_in_mcount_while_its_site_was_patched_is_not_recorded(disabled) -> None:
    tiny = TinyKernel(vcpus=2, disabled=disabled)
    late = tiny.begin("f0", vcpu=1)
    tiny.run_to(late, tiny.address("mcount"))
    tiny.call("f0", vcpu=0)
    assert tiny.ftrace.ftraced_pass().patched == 1
    tiny.finish(late)
    assert tiny.skipped() == {"patched": 1}
    assert (tiny.traps, tiny.recorded()) == (1, ["f0"])


def test_already_patched_is_looked_at_before_the_slots() -> None:
    tiny = TinyKernel(300, vcpus=2)
    late = tiny.begin("f0", vcpu=1)
    tiny.run_to(late, tiny.address("mcount"))
    tiny.call_all(FUNCTIONS[:145])
    assert tiny.ftrace.ftraced_pass().pages_added == 1
    tiny.call_all(FUNCTIONS[145:290])  # and the new page is full, too
    tiny.finish(late)
    assert tiny.skipped() == {"patched": 1}


def test_the_hook_looks_again_whether_a_pass_has_patched_the_site() -> None:
    """Parked behind the guest's own check, in front of the trap."""
    tiny = TinyKernel(vcpus=2)
    late = tiny.begin("f0", vcpu=1)
    tiny.run_to(late, tiny.trap_at)
    tiny.call("f0", vcpu=0)
    tiny.ftrace.ftraced_pass()
    tiny.finish(late)
    assert tiny.traps == 2
    assert tiny.skipped() == {"patched": 1}
    assert tiny.recorded() == ["f0"]


@pytest.mark.parametrize("where", ["mcount", "trap"])
def test_a_call_that_was_in_mcount_while_tracing_came_on_is_not_recorded_twice(where) -> None:
    """The site reads as a call and its record has left the hash, but it has one."""
    tiny = TinyKernel(vcpus=2)
    late = tiny.begin("f0", vcpu=1)
    tiny.run_to(late, tiny.address("ftrace_record_ip") if where == "mcount" else tiny.trap_at)
    tiny.call("f0", vcpu=0)
    tiny.ftrace.startup()
    assert tiny.kind("f0") == "traced"
    tiny.finish(late)
    assert tiny.recorded() == ["f0"]
    assert tiny.skipped() == {"patched": 1}
    assert tiny.traps == (1 if where == "mcount" else 2)  # guest code looks at the map by itself
    assert tiny.kernel.percpu("traced_calls") == [0, 1]  # it had not asked yet who wants it


@pytest.mark.parametrize("where", ["mcount", "trap"])
def test_a_call_that_was_in_mcount_while_its_site_was_made_to_call_the_tracers(where) -> None:
    """By a pass, while tracing: there it goes, and it is not recorded anew."""
    tiny = TinyKernel(vcpus=2)
    tiny.ftrace.startup()
    late = tiny.begin("f0", vcpu=1)
    tiny.run_to(late, tiny.address("ftrace_record_ip") if where == "mcount" else tiny.trap_at)
    tiny.call("f0", vcpu=0)
    assert tiny.ftrace.ftraced_pass().patched == 1
    assert tiny.kind("f0") == "traced"
    tiny.finish(late)
    assert tiny.recorded() == ["f0"]
    assert tiny.skipped() == {"patched": 1}
    assert tiny.kernel.percpu("traced_calls") == [1, 1]


# --- S4 ---


def test_without_any_page_calls_are_skipped_and_counted_and_never_trap() -> None:
    tiny = TinyKernel(boot_records=0)
    tiny.call_all(["f0", "f1", "f0"])
    assert tiny.skipped() == {"no_slot": 3}
    assert (tiny.traps, tiny.pages()) == (0, [])
    assert tiny.hashed() == set()


def test_with_all_slots_taken_calls_are_skipped_and_counted_and_never_trap() -> None:
    tiny = TinyKernel(300, boot_records=145)
    tiny.call_all(FUNCTIONS[:150])
    assert tiny.traps == 145
    assert tiny.skipped() == {"no_slot": 5}
    assert tiny.recorded() == FUNCTIONS[:145]


def test_what_was_skipped_is_recorded_by_a_later_call() -> None:
    tiny = TinyKernel(300, boot_records=145)
    tiny.call_all(FUNCTIONS[:150])
    assert tiny.ftrace.ftraced_pass().pages_added == 1
    tiny.call_all(FUNCTIONS[:150])
    assert tiny.recorded() == FUNCTIONS[:150]
    assert tiny.skipped() == {"no_slot": 5}


def test_the_hook_itself_may_find_no_slot_when_another_vcpu_took_the_last() -> None:
    tiny = TinyKernel(300, vcpus=2)
    tiny.call_all(FUNCTIONS[:144])
    late = tiny.begin("f200", vcpu=1)
    tiny.run_to(late, tiny.trap_at)
    tiny.call("f144")
    tiny.finish(late)
    assert tiny.skipped() == {"no_slot": 1}
    assert "f200" not in tiny.recorded()
    assert tiny.kernel.percpu("preempt_count") == [0, 0]
