# workload "shared": all CPUs work on one structure under a spinlock. It needs LOCK-prefixed
# instructions that are atomic between CPUs, which only the deterministic engine has.

.include "linkage.inc"
.include "percpu.inc"
.include "workload.inc"

.set SHARED_SLOTS, 64

# spin_lock(lock rdi): task context. Preemption stays off until spin_unlock.
FUNC spin_lock
        PREEMPT_DISABLE
1:
        mov eax, 1
        xchg [rdi], eax
        test eax, eax
        jz 3f
2:
        pause
        cmp dword ptr [rdi], 0
        jne 2b
        jmp 1b
3:
        RETURN
END spin_lock

# spin_unlock(lock rdi)
FUNC spin_unlock
        mov dword ptr [rdi], 0
        PREEMPT_ENABLE
        RETURN
END spin_unlock

# shared_add(slot edi, value rsi): the critical section: slot and total move together.
FUNC shared_add
        lea rax, [rip + shared_slots]
        add [rax + rdi * 8], rsi
        add [rip + shared_total], rsi
        RETURN
END shared_add

# shared_step(task rdi): add to some slots; fold only what this task added.
FUNC shared_step
        push rbx
        push r12
        push r13
        push r14
        mov r12, rdi
        mov ebx, 16
1:
        lea rdi, [r12 + TASK_RNG]
        call prandom_u64
        mov r13, rax
        lea rdi, [rip + shared_lock]
        call spin_lock
        mov rdi, r13
        and edi, SHARED_SLOTS - 1
        mov rsi, r13
        call shared_add
        lea rdi, [rip + shared_lock]
        call spin_unlock
        lock inc qword ptr [rip + shared_operations]
        mov rdi, r12
        mov rsi, r13
        call checksum_fold
        dec ebx
        jnz 1b
        pop r14
        pop r13
        pop r12
        pop rbx
        RETURN
END shared_step

.set shared_setup, 0

.data
        .p2align 6
shared_lock:
        .quad 0
shared_operations:
        .quad 0
shared_total:
        .quad 0
shared_slots:
        .skip 8 * SHARED_SLOTS

.rodata
.Lname_shared:
        .asciz "shared"
        .p2align 3
workload_list_shared:
        WORKER shared, 20
        .quad 0
