# Interrupt and NMI entry. Gates are interrupt gates: a handler starts with interrupts off.

.include "linkage.inc"
.include "percpu.inc"

# The general registers below the hardware's frame, lowest address first: struct pt_regs.
.macro SAVE_ALL
        push rdi
        push rsi
        push rdx
        push rcx
        push rax
        push r8
        push r9
        push r10
        push r11
        push rbx
        push rbp
        push r12
        push r13
        push r14
        push r15
        cld
.endm

.macro RESTORE_ALL
        pop r15
        pop r14
        pop r13
        pop r12
        pop rbp
        pop rbx
        pop r11
        pop r10
        pop r9
        pop r8
        pop rax
        pop rcx
        pop rdx
        pop rsi
        pop rdi
.endm

# What tracers must know of an interrupt, regs rdi, before anything traced runs.
.macro TRACE_IRQ_ENTRY
        mov byte ptr gs:[PCPU_IRQS_OFF], 1
.ifdef CONFIG_FTRACE
        call ftrace_interrupted
.endif
.endm

# The local timer. RBP stays the interrupted function's, so backtraces go on through the frame.
ENTRY apic_timer_interrupt
        SAVE_ALL
        mov rdi, rsp
        TRACE_IRQ_ENTRY
        call smp_apic_timer_interrupt
        jmp ret_from_intr
END apic_timer_interrupt

# Leave an interrupt: with CONFIG_PREEMPT the task is switched here if the tick asked for it and
# nothing forbids it. Interrupts are off.
ENTRY ret_from_intr
        cmp byte ptr gs:[PCPU_NEED_RESCHED], 0
        je .Lrestore_all
        cmp qword ptr gs:[PCPU_PREEMPT_COUNT], 0
        jne .Lrestore_all
        call preempt_schedule_irq
.Lrestore_all:
        mov byte ptr gs:[PCPU_IRQS_OFF], 0      # they were on, or it had not come
        RESTORE_ALL
        iretq
END ret_from_intr

# Non-maskable interrupt, on its own stack (IST 1). It may come between any two instructions, also
# while text is being changed: nothing it reaches is traced, and it switches no task.
ENTRY nmi
        SAVE_ALL
        mov rdi, rsp
        movzx ebx, byte ptr gs:[PCPU_IRQS_OFF]
        TRACE_IRQ_ENTRY
        call do_nmi
        mov gs:[PCPU_IRQS_OFF], bl
        RESTORE_ALL
        iretq
END nmi

.rodata
trace_irqflags:                         # says to the host: TRACE_IRQ_ENTRY and pcpu.irqs_off are there
        .byte 1
