# What each CPU does for a living. A workload is a list of workers; each gets a task, and in every
# iteration a fixed quota of steps. A task folds only its own results, and the CPU's checksum joins
# the tasks' in the order of the list when all have done their quota. So the checksum after n iterations
# is the same whatever interrupts, patches or other CPUs did meanwhile.

.include "linkage.inc"
.include "percpu.inc"
.include "workload.inc"

.set SECOND_WAVE_MS, 1500

.percpu workers_busy, 8                 # workers that have not done their quota
.percpu workload_task, 8                # who waits for them
.percpu worker_tasks, 8 * 16            # the tasks in the order of the list, ended by 0

# workload_start(): make this CPU's tasks. Preemption cannot happen yet.
FUNC workload_start
        push rbx
        push r12
        lea rdi, [rip + workload_main]
        xor esi, esi
        lea rdx, [rip + .Lworkload]
        call kthread_create
        mov gs:[workload_task], rax
        mov rdi, rax
        call wake_up_process
        mov rbx, [rip + boot_params + BOOT_PARAMS_WORKLOAD]
        xor r12d, r12d
1:
        cmp qword ptr [rbx + WORKER_STEP], 0
        je 2f
        lea rdi, [rip + worker_main]
        mov rsi, rbx
        mov rdx, [rbx + WORKER_NAME]
        call kthread_create
        mov gs:[worker_tasks + r12 * 8], rax
        inc r12
        add rbx, WORKER_SIZE
        jmp 1b
2:
        pop r12
        pop rbx
        RETURN
END workload_start

# workload_main(): a kernel thread: iterations without end, or as many as the loader said.
FUNC workload_main
1:
        call start_iteration
        call wait_for_workers
        call end_iteration
        mov edi, SECOND_WAVE_MS
        call time_after_boot
        test eax, eax
        jz 2f
        call late_work
2:
        call cond_resched
        mov rax, [rip + boot_params + BOOT_PARAMS_ITERATION_LIMIT]
        test rax, rax
        jz 1b
        cmp gs:[PCPU_ITERATIONS], rax
        jb 1b
        call play_dead
        ud2
END workload_main

# start_iteration(): wake every worker with a fresh quota.
FUNC start_iteration
        push rbx
        push r12
        PREEMPT_DISABLE
        xor r12d, r12d
1:
        mov rbx, gs:[worker_tasks + r12 * 8]
        test rbx, rbx
        jz 2f
        inc qword ptr gs:[workers_busy]
        mov rdi, rbx
        call wake_up_process
        inc r12
        jmp 1b
2:
        PREEMPT_ENABLE
        pop r12
        pop rbx
        RETURN
END start_iteration

# wait_for_workers(): sleep until the last one wakes us.
FUNC wait_for_workers
1:
        CURRENT rcx
        PREEMPT_DISABLE
        cmp qword ptr gs:[workers_busy], 0
        je 2f
        mov qword ptr [rcx + TASK_STATE], TASK_SLEEPING
        PREEMPT_ENABLE
        call schedule
        jmp 1b
2:
        PREEMPT_ENABLE
        RETURN
END wait_for_workers

# end_iteration(): join the tasks' checksums, count the iteration. Both are stored without preemption
# between them: who stops the machine by Linux's rule sees a pair.
FUNC end_iteration
        push rbx
        push r12
        mov rbx, gs:[PCPU_CHECKSUM]
        xor r12d, r12d
1:
        mov rcx, gs:[worker_tasks + r12 * 8]
        test rcx, rcx
        jz 2f
        rol rbx, 7
        xor rbx, [rcx + TASK_CHECKSUM]
        inc r12
        jmp 1b
2:
        PREEMPT_DISABLE
        mov gs:[PCPU_CHECKSUM], rbx
        inc qword ptr gs:[PCPU_ITERATIONS]
        PREEMPT_ENABLE
        pop r12
        pop rbx
        RETURN
END end_iteration

# worker_main(worker rdi): a kernel thread: its quota of steps whenever it is woken.
#   rbx = worker, r12 = task, r13 = steps left, r14 = steps ever done, kept in the register
FUNC worker_main
        mov rbx, rdi
        CURRENT r12
        mov qword ptr [r12 + TASK_DATA], 0
        xor r14d, r14d
        mov rax, [rbx + WORKER_SETUP]
        test rax, rax
        jz 1f
        mov rdi, r12
        call rax
1:
        mov r13, [rbx + WORKER_QUOTA]
2:
        mov rdi, r12
        call [rbx + WORKER_STEP]
        inc qword ptr [r12 + TASK_MEMORY_STEPS]
        inc r14
        call cond_resched
        dec r13
        jnz 2b
        mov [r12 + TASK_REGISTER_STEPS], r14
        cmp r14, [r12 + TASK_MEMORY_STEPS]
        jne .Lran_twice
        call worker_done
        jmp 1b
.Lran_twice:
        lea rdi, [rip + .Lran_twice_text]
        call panic
        ud2
END worker_main

# worker_done(): sleep until the next iteration; the last one wakes the waiting task.
FUNC worker_done
        CURRENT rcx
        PREEMPT_DISABLE
        mov qword ptr [rcx + TASK_STATE], TASK_SLEEPING
        dec qword ptr gs:[workers_busy]
        jnz 1f
        mov rdi, gs:[workload_task]
        call wake_up_process
1:
        PREEMPT_ENABLE
        call schedule
        RETURN
END worker_done

.rodata
.Lworkload:
        .asciz "workload"
.Lran_twice_text:
        .asciz "a step was counted twice in memory: an instruction ran twice"
