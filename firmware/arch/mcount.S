# mcount and what it leads to: every traced function calls it first, so what is here runs on every
# call that is not patched away. Nothing here is traced.

.include "linkage.inc"
.include "percpu.inc"

.set MCOUNT_INSN_SIZE, 5                # call rel32
.set MCOUNT_FRAME, 0x38                 # the seven registers below
.set FTRACE_OFFSET, 0x1000000           # in preempt_count, above NMI_OFFSET: in the recorder

# Sites of gcc -mfentry come in front of "push rbp; mov rbp, rsp" (CONFIG_FENTRY): SITE_ENTER makes
# the frame that the function has not made yet, so that the stack is what mcount's callers have, and
# SITE_RETURN takes it away again. Neither touches a register but rbp, nor flags.
.macro SITE_ENTER
.ifdef CONFIG_FENTRY
        push qword ptr [rsp]
        mov [rsp + 8], rbp              # where the return address was
        lea rbp, [rsp + 8]
.endif
.endm

.macro SITE_RETURN
.ifdef CONFIG_FENTRY
        mov rbp, [rsp + 8]
        pop qword ptr [rsp]             # stored where rsp points once it has moved
.endif
        ret
.endm

# mcount: called behind "push rbp; mov rbp, rsp".
#   in     [rsp] = return address (ip: the call is at ip - MCOUNT_INSN_SIZE), [rbp + 8] = parent_ip
#   out    everything preserved but r11 and flags: the caller's arguments are still in registers
#   state  any: task, interrupt; never NMI
# ftrace_trace_function is loaded once. What that load returned is what this call does: the pointer
# may change behind it.
ENTRY mcount
        inc qword ptr gs:[PCPU_MCOUNT_CALLS]
mcount_load:
        mov r11, [rip + ftrace_trace_function]
        cmp r11, ftrace_stub
        jne .Ltrace
        ret
.Ltrace:
        SITE_ENTER
        sub rsp, MCOUNT_FRAME
        mov [rsp], rax
        mov [rsp + 0x08], rcx
        mov [rsp + 0x10], rdx
        mov [rsp + 0x18], rsi
        mov [rsp + 0x20], rdi
        mov [rsp + 0x28], r8
        mov [rsp + 0x30], r9
        mov rdi, [rsp + MCOUNT_FRAME]
        mov rsi, [rbp + 8]
        call r11
        mov r9, [rsp + 0x30]
        mov r8, [rsp + 0x28]
        mov rdi, [rsp + 0x20]
        mov rsi, [rsp + 0x18]
        mov rdx, [rsp + 0x10]
        mov rcx, [rsp + 0x08]
        mov rax, [rsp]
        add rsp, MCOUNT_FRAME
        cmp qword ptr [rip + ftrace_unknown_ops], 0
        jne ftrace_caller_unknown       # some tracer wants what runs for the first time, too
        SITE_RETURN
END mcount

# Where the pointer leads when nobody listens.
ENTRY ftrace_stub
        ret
END ftrace_stub

# ftrace_static_call: where the pointer leads while somebody listens and no call is ever recorded
# (DYNAMIC_FTRACE off): straight on to the tracers.
ENTRY ftrace_static_call
        ret
END ftrace_static_call

# ftrace_record_ip(ip rdi, parent_ip rsi): record a call site when it runs for the first time.
#   clobbers  rax rcx rdx
#   state     any but NMI. An interrupt may come in and call mcount too: that call is not recorded,
#             since this one may be in the middle of a look-up. Preemption is off meanwhile, or every
#             other task's call would count as nested.
# A known site, and a call that is skipped, costs no trap. Only a miss with a slot to put it in asks
# the host's hook, which looks again: two CPUs may miss at once.
ENTRY ftrace_record_ip
        test qword ptr gs:[PCPU_PREEMPT_COUNT], FTRACE_OFFSET
        jnz .Lnested
        add qword ptr gs:[PCPU_PREEMPT_COUNT], FTRACE_OFFSET
        cmp qword ptr [rip + ftrace_record_suspended], 0
        jne .Lsuspended
        movabs rax, GOLDEN_RATIO_PRIME_64       # hash_long(ip, FTRACE_HASHBITS)
        imul rax, rdi
        shr rax, 64 - FTRACE_HASHBITS
        mov rcx, [ftrace_hash + rax * 8]
.Llookup:
        test rcx, rcx
        jz .Lmiss
        cmp [rcx + DYN_FTRACE_IP], rdi
        je .Lout
        mov rcx, [rcx + DYN_FTRACE_NEXT]
        jmp .Llookup
.Lmiss:
        # This CPU may have been stopped inside mcount while the site was patched.
        movzx eax, word ptr [rdi - MCOUNT_INSN_SIZE]
        cmp ax, [rip + ftrace_disabled_insn]
        je .Lpatched
        lea rax, [rdi - MCOUNT_INSN_SIZE]       # ... or made a call to the tracers
        and rax, -4
        test byte ptr [rax + FTRACE_MAP_OFFSET], TRACE_KNOWN
        jnz .Lpatched
        mov rcx, [rip + ftrace_pages]
        test rcx, rcx
        jz .Lno_slot
        cmp dword ptr [rcx + FTRACE_PAGE_INDEX], ENTRIES_PER_PAGE
        jb .Lrecord
        cmp qword ptr [rcx + FTRACE_PAGE_NEXT], 0
        je .Lno_slot
.Lrecord:
        mov edx, PORT_FTRACE_RECORD
        in eax, dx
        cmp eax, SKIP_NO_SLOT
        je .Lno_slot
        cmp eax, SKIP_PATCHED
        je .Lpatched
        cmp eax, SKIP_SUSPENDED
        je .Lsuspended
.Lout:
        # No rescheduling here, as preempt_enable would do: schedule() is traced.
        sub qword ptr gs:[PCPU_PREEMPT_COUNT], FTRACE_OFFSET
        ret
.Lsuspended:
        inc qword ptr gs:[PCPU_SKIPPED_SUSPENDED]
        jmp .Lout
.Lpatched:
        inc qword ptr gs:[PCPU_SKIPPED_PATCHED]
        jmp .Lout
.Lno_slot:
        inc qword ptr gs:[PCPU_SKIPPED_NO_SLOT]
        jmp .Lout
.Lnested:
        inc qword ptr gs:[PCPU_SKIPPED_NESTED]
        ret
END ftrace_record_ip

# ftrace_dynamic_init(): the first initcall. Until it has run nothing is recorded.
FUNC ftrace_dynamic_init
        mov rax, [rip + ftrace_initial_function]
        mov [rip + ftrace_trace_function], rax
        mov qword ptr [rip + ftrace_ready], 1
        RETURN
END ftrace_dynamic_init
INITCALL ftrace_dynamic_init

# What runs on most calls lies in one page: the engine links blocks of one page directly.
.include "trace/entry.S"
.include "trace/ring_buffer.S"
.include "trace/functions.S"
.include "trace/functions_graph.S"
.include "trace/stack.S"
.include "trace/probes.S"

.data
        .p2align 3
ftrace_trace_function:                  # whom mcount follows; one 8-byte store changes it
        .quad ftrace_stub
ftrace_initial_function:                # whom it follows from the initcall on
.ifdef CONFIG_DYNAMIC_FTRACE
        .quad ftrace_record_ip
.else
        .quad ftrace_stub
.endif
ftrace_ready:
        .quad 0
ftrace_record_suspended:                # not 0 during a pass, and while others listen
        .quad 0
ftrace_pages:                           # the page records are taken from, or 0; the host writes
        .quad 0
ftrace_disabled_insn:                   # the first two bytes of a site that is patched away
        .quad 0x03eb
        .p2align 6
ftrace_hash:                            # hlist heads; the host writes, by single 8-byte stores
        .skip 8 * FTRACE_HASHSIZE
