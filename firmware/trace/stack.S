# The stack tracer: the deepest stack this CPU has seen, and who was on it
# (kernel/trace/trace_stack.c).

.include "linkage.inc"
.include "percpu.inc"
.include "trace/trace.inc"

# stack_trace_call(site rdi, frame rbp). The sequence number is odd while the trace is written.
ENTRY stack_trace_call
        mov rax, rbp
        or rax, STACK_SLOT - 1
        inc rax
        mov rcx, rax                    # the top of this stack
        sub rax, rbp
        cmp rax, gs:[PCPU_STACK_MAX]
        jbe 3f
        mov rdx, rbp
        shr rdx, 14                     # STACK_SLOT
        and edx, STACKS_PER_CPU - 1
        cmp edx, NMI_STACK_SLOT
        je 3f
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
3:
        ret
END stack_trace_call
