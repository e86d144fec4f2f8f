# From the first instruction in C, as it were, to the idle loop.

.include "linkage.inc"
.include "percpu.inc"

# start_kernel(): the boot CPU. Interrupts off. Does not return.
FUNC start_kernel
        call setup_arch
        call trap_init
        call time_init
        call cpu_init
        call sched_init
        call do_cpu_initcalls
        call smp_init
        call do_initcalls
        mov qword ptr [rip + system_running], 1
        call rest_init
        ud2
END start_kernel

FUNC setup_arch
        lea rdi, [rip + .Lbanner]
        call printk
        RETURN
END setup_arch

# do_initcalls(): what the sources registered with INITCALL, in their order.
FUNC do_initcalls
        push rbx
        push r12
        lea rbx, [rip + __start_initcalls]
        lea r12, [rip + __stop_initcalls]
1:
        cmp rbx, r12
        jae 2f
        call [rbx]
        add rbx, 8
        jmp 1b
2:
        pop r12
        pop rbx
        RETURN
END do_initcalls

# do_cpu_initcalls(): the same for what each CPU needs of its own.
FUNC do_cpu_initcalls
        push rbx
        push r12
        lea rbx, [rip + __start_cpu_initcalls]
        lea r12, [rip + __stop_cpu_initcalls]
1:
        cmp rbx, r12
        jae 2f
        call [rbx]
        add rbx, 8
        jmp 1b
2:
        pop r12
        pop rbx
        RETURN
END do_cpu_initcalls

# smp_init(): bring the other CPUs up, before the initcalls, as Linux does.
FUNC smp_init
        push rbx
        mov ebx, 1
1:
        cmp rbx, [rip + boot_params + BOOT_PARAMS_NR_CPUS]
        jae 2f
        mov edi, ebx
        call cpu_up
        inc ebx
        jmp 1b
2:
        call smp_cpus_done
        pop rbx
        RETURN
END smp_init

# cpu_up(cpu edi): start a CPU.
FUNC cpu_up
        mov eax, edi
        mov edx, PORT_CPU_START
        out dx, eax
        RETURN
END cpu_up

# smp_cpus_done(): wait until every CPU is online.
FUNC smp_cpus_done
        lea rcx, [rip + cpu_online_map]
        mov edx, 1
1:
        cmp rdx, [rip + boot_params + BOOT_PARAMS_NR_CPUS]
        jae 3f
2:
        pause
        cmp byte ptr [rcx + rdx], 0
        je 2b
        inc edx
        jmp 1b
3:
        RETURN
END smp_cpus_done

# start_secondary(): the other CPUs. Interrupts off. Does not return.
FUNC start_secondary
        call cpu_init
        call sched_init
        call do_cpu_initcalls
        mov rcx, gs:[PCPU_CPU]
        lea rax, [rip + cpu_online_map]
        mov byte ptr [rax + rcx], 1     # each CPU writes its own byte, the boot CPU reads it
        call wait_for_boot_cpu
        call rest_init
        ud2
END start_secondary

# wait_for_boot_cpu(): what the initcalls make is read by everybody and must be there first.
# Interrupts are on meanwhile: this CPU can be stopped like any other.
FUNC wait_for_boot_cpu
1:
        LOCAL_IRQ_ENABLE
        call cond_resched
        cmp qword ptr [rip + system_running], 0
        jne 2f
        hlt                             # until the next tick
        jmp 1b
2:
        LOCAL_IRQ_DISABLE
        RETURN
END wait_for_boot_cpu

# rest_init(): start this CPU's work and become its idle task.
FUNC rest_init
        call workload_start
        LOCAL_IRQ_ENABLE
        call cpu_idle
        ud2
END rest_init

.data
        .p2align 3
system_running:                         # not 0 once the initcalls are done
        .quad 0
cpu_online_map:
        .skip 64

.rodata
.Lbanner:
        .asciz "mini-kernel 2.6.25 (dynftrace-emu)"
