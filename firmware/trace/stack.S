# Traces of stacks: as an event, and that of the deepest stack this CPU has seen
# (kernel/trace/trace.c, trace_stack.c).

.include "linkage.inc"
.include "percpu.inc"
.include "trace/trace.inc"

.set STACK_CALLERS, 12                  # as many as type_len can tell
.set STACK_EVENT, 20 + 8 * STACK_CALLERS        # header, common, number, padding, callers

# \reg = the top of the stack that rbp is on; jumps to \unknown if it is none of ours.
.macro STACK_TOP reg, unknown
        mov \reg, rbp
.ifdef CONFIG_ANY_STACK
        sub \reg, [rip + image_stacks]
        cmp \reg, [rip + image_stacks_size]
        jae \unknown
        mov \reg, rbp
        or \reg, [rip + image_stack_mask]
.else
        or \reg, STACK_SLOT - 1
.endif
        inc \reg
.endm

# Jumps to \off unless \frame, a frame pointer that may be anything, is in the stack that rsp is on.
# Clobbers \temp.
.macro STILL_ON_STACK frame, temp, off
        mov \temp, \frame
.ifdef CONFIG_ANY_STACK
        # In the memory that the image has without a hole, or above us on a stack we gave it.
        sub \temp, [rip + image_memory]
        cmp \temp, [rip + image_memory_size]
        jb .Lon_stack\@
        cmp \frame, rsp
        jb \off
        mov \temp, \frame
        sub \temp, [rip + image_stacks]
        cmp \temp, [rip + image_stacks_size]
        jae \off
        mov \temp, \frame
        xor \temp, rsp
        or \temp, [rip + image_stack_mask]
        cmp \temp, [rip + image_stack_mask]
        jne \off
.Lon_stack\@:
.else
        xor \temp, rsp
        test \temp, -STACK_SLOT
        jnz \off
.endif
.endm

# stack_trace_call(site rdi, frame rbp). The sequence number is odd while the trace is written.
ENTRY stack_trace_call
        STACK_TOP rax, 3f
        mov rcx, rax                    # the top of this stack
        sub rax, rbp
        cmp rax, gs:[PCPU_STACK_MAX]
        jbe 3f
.ifndef CONFIG_ANY_STACK
        mov rdx, rbp
        shr rdx, 14                     # STACK_SLOT
        and edx, STACKS_PER_CPU - 1
        cmp edx, NMI_STACK_SLOT
        je 3f
.endif
        pushfq
        cli                             # an interrupt's stack is deeper
        cmp rax, gs:[PCPU_STACK_MAX]
        jbe .Lnot_deeper
        inc qword ptr gs:[PCPU_STACK_SEQ]
        mov gs:[PCPU_STACK_MAX], rax
        push rdi
        push rcx
        mov rax, gs:[PCPU_SELF]
        lea rdx, [rax + PCPU_STACK_IPS + 8 * STACK_TRACE_ENTRIES]
        add rax, PCPU_STACK_IPS
        call save_stack_trace
        pop rcx
        pop rdi
        mov rdx, gs:[PCPU_SELF]
        sub rax, rdx
        sub rax, PCPU_STACK_IPS
        shr rax, 3
        mov gs:[PCPU_STACK_NR], rax
        mov r9, rbp
        xor esi, esi
1:
        mov r8, rcx
        sub r8, r9
        mov [rdx + rsi * 8 + PCPU_STACK_SIZES], r8
        inc esi
        cmp rsi, rax
        jae 2f
        mov r8, [r9]
        add r9, 16                      # who has no frame of its own begins above this one
        cmp r8, r9
        cmovae r9, r8
        jmp 1b
2:
        inc qword ptr gs:[PCPU_STACK_SEQ]
.Lnot_deeper:
        popfq
3:
        ret
END stack_trace_call

# ftrace_trace_stack(buffer r11, site rdi, rflags r10): write who called whom, innermost first, along
# the frame pointers; -1 ends it.
ENTRY ftrace_trace_stack
        RING_BUFFER_RESERVE STACK_EVENT, .Lstack_dropped
        GENERIC_ENTRY EVENT_KERNEL_STACK
        push rdi
        push r9
        push rcx
        push rdx
        lea rax, [rdx + 20]
        lea rdx, [rax + 8 * STACK_CALLERS]
        call save_stack_trace
        pop rdx
        pop rcx
        pop r9
        pop rdi
        mov rsi, rax
        sub rsi, rdx
        sub rsi, 20
        shr esi, 3
        mov [rdx + 12], rsi
        lea rsi, [rdx + STACK_EVENT]
1:
        cmp rax, rsi
        jae 2f
        mov qword ptr [rax], -1
        add rax, 8
        jmp 1b
2:
        RING_BUFFER_COMMIT
.Lstack_dropped:
        ret
END ftrace_trace_stack

# save_stack_trace(to rax, end rdx, site rdi, frame rbp): rax = behind the last one stored.
#   clobbers  rcx rsi rdi r8 r9
# What returns to return_to_handler is shown as what that stands for: the shadow stack's entry that
# was made for this frame.
ENTRY save_stack_trace
        mov [rax], rdi
        add rax, 8
        mov r9, rbp
        xor esi, esi
        xor r8d, r8d
.ifndef CONFIG_ANY_STACK
        RET_STACK_HERE rcx, 1f
        lea r8, [rcx + RET_STACK_SIZE]  # its first entry
        mov esi, [rcx + RET_STACK_DEPTH]
        RET_ENTRY_OF rsi, rcx
.endif
1:
        cmp rax, rdx
        jae 4f
        STILL_ON_STACK r9, rdi, 4f
        mov rdi, [r9 + 8]
        cmp rdi, return_to_handler
        jne 3f
        lea rcx, [r9 + 8]
.ifdef CONFIG_ANY_STACK
        push rax
        push rdx
        mov rdx, rcx
        call ret_node_find
        lea rsi, [rcx + RET_STACK_SIZE]
        pop rdx
        pop rax
        jne 4f
.else
2:
        sub rsi, RET_ENTRY_SIZE
        cmp rsi, r8
        jb 4f
        cmp [rsi + RET_ENTRY_FRAME], rcx
        jne 2b
.endif
        mov rdi, [rsi + RET_ENTRY_RET]
3:
        test rdi, rdi
        jz 4f
        mov [rax], rdi
        add rax, 8
        mov rdi, [r9]
        cmp rdi, r9
        mov r9, rdi
        ja 1b
4:
        ret
END save_stack_trace
