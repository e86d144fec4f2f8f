# The tick. Time comes from the clock the host keeps in the per-CPU area, so a late tick loses none.

.include "linkage.inc"
.include "percpu.inc"

.set HARDIRQ_OFFSET, 0x10000
.set NSEC_PER_SEC, 1000000000

# time_init(): on the boot CPU, once.
FUNC time_init
        mov eax, NSEC_PER_SEC
        xor edx, edx
        mov rcx, [rip + boot_params + BOOT_PARAMS_HZ]
        test rcx, rcx
        jz 1f
        div rcx
        mov [rip + tick_nsec], rax
1:
        RETURN
END time_init

FUNC irq_enter
        add qword ptr gs:[PCPU_PREEMPT_COUNT], HARDIRQ_OFFSET
        RETURN
END irq_enter

FUNC irq_exit
        sub qword ptr gs:[PCPU_PREEMPT_COUNT], HARDIRQ_OFFSET
        RETURN
END irq_exit

# smp_apic_timer_interrupt(regs rdi). Interrupts off.
FUNC smp_apic_timer_interrupt
        push rdi
        call irq_enter
        call local_apic_timer_interrupt
        call irq_exit
        pop rdi
        RETURN
END smp_apic_timer_interrupt

FUNC local_apic_timer_interrupt
        inc qword ptr gs:[PCPU_TIMER_INTERRUPTS]
        call do_timer
        call update_process_times
        RETURN
END local_apic_timer_interrupt

# do_timer(): jiffies from the clock.
FUNC do_timer
        mov rcx, gs:[PCPU_CLOCK_NS]
        mov rax, rcx
        xor edx, edx
        div qword ptr [rip + tick_nsec]
        mov gs:[PCPU_JIFFIES], rax
        RETURN
END do_timer

FUNC update_process_times
        call run_local_timers
        call scheduler_tick
        RETURN
END update_process_times

# run_local_timers(): wake the tasks of this CPU whose time has come.
FUNC run_local_timers
        push rbx
        push r12
        mov rbx, gs:[PCPU_TASKS]
1:
        test rbx, rbx
        jz 3f
        mov rax, [rbx + TASK_TIMEOUT]
        test rax, rax
        jz 2f
        mov r12, gs:[PCPU_JIFFIES]
        cmp rax, r12
        ja 2f
        mov rdi, rbx
        call process_timeout
2:
        mov rbx, [rbx + TASK_SIBLING]
        jmp 1b
3:
        pop r12
        pop rbx
        RETURN
END run_local_timers

# process_timeout(task rdi)
FUNC process_timeout
        mov qword ptr [rdi + TASK_TIMEOUT], 0
        call wake_up_process
        RETURN
END process_timeout

# time_after_boot(ms edi): eax = 1 once this CPU's jiffies have come so far.
FUNC time_after_boot
        mov eax, edi
        mul qword ptr [rip + boot_params + BOOT_PARAMS_HZ]
        mov ecx, 1000
        div rcx
        mov rcx, gs:[PCPU_JIFFIES]
        cmp rcx, rax
        setae al
        movzx eax, al
        RETURN
END time_after_boot

.data
        .p2align 3
tick_nsec:
        .quad 1
