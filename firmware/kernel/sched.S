# Tasks and the runqueue of each CPU: first come, first served, preemptible (CONFIG_PREEMPT).
#
# Tasks never migrate, so all of this is per-CPU; it is guarded by interrupts off, since the tick
# wakes tasks. __schedule always switches at preempt_count 1, so the per-CPU count needs no saving.

.include "linkage.inc"
.include "percpu.inc"

.percpu rq_head, 8                      # the next task to run, or 0
.percpu rq_tail, 8
.percpu nr_running, 8                   # tasks queued
.percpu nr_switches, 8
.percpu nr_tasks, 8                     # task slots given out
.percpu idle_task, 8
.percpu task_structs, TASK_BYTES

.set SWITCH_FRAME, 0x38                 # six registers and the return address

# sched_init(): on every CPU: the code that runs becomes the idle task, slot 0.
FUNC sched_init
        call alloc_task_struct
        mov gs:[PCPU_CURRENT], rax
        mov rcx, [rax + TASK_PID]
        mov gs:[PCPU_PID], cx
        mov gs:[idle_task], rax
        mov qword ptr [rax + TASK_ON_CPU], 1
        lea rdi, [rax + TASK_COMM]
        lea rsi, [rip + .Lswapper]
        mov edx, 16
        call strlcpy
        RETURN
END sched_init

# alloc_task_struct(): rax = a task with a stack of its own, linked into this CPU's list. Panics when
# all slots are taken.
FUNC alloc_task_struct
        mov rcx, gs:[nr_tasks]
        cmp rcx, NMI_STACK_SLOT
        jae .Lno_slots
        inc qword ptr gs:[nr_tasks]
        imul rax, rcx, TASK_SIZE
        add rax, gs:[PCPU_SELF]
        add rax, task_structs
        imul rdx, gs:[PCPU_CPU], STACKS_PER_CPU
        lea r8, [rdx + rcx + 1]
        mov [rax + TASK_PID], r8
        add rdx, rcx
        imul rdx, rdx, STACK_SLOT
        movabs r8, STACK_AREA + STACK_SLOT - THREAD_SIZE
        add rdx, r8
        mov [rax + TASK_STACK], rdx
        # Seeds differ from task to task and stay the same from run to run.
        mov rdx, [rax + TASK_PID]
        movabs r8, GOLDEN_RATIO_PRIME_64
        imul rdx, r8
        or rdx, 1
        mov [rax + TASK_RNG], rdx
        call link_task
        RETURN
.Lno_slots:
        lea rdi, [rip + .Lno_slots_text]
        call panic
        RETURN
END alloc_task_struct

# link_task(task rax): append to this CPU's task list. Preserves rax.
FUNC link_task
        mov rcx, gs:[PCPU_TASKS]
        test rcx, rcx
        jz 2f
1:
        mov rdx, [rcx + TASK_SIBLING]
        test rdx, rdx
        jz 3f
        mov rcx, rdx
        jmp 1b
2:
        mov gs:[PCPU_TASKS], rax
        RETURN
3:
        mov [rcx + TASK_SIBLING], rax
        RETURN
END link_task

# kthread_create(fn rdi, data rsi, name rdx): rax = a new task, asleep; fn(data) runs once it is woken.
FUNC kthread_create
        push rbx
        push r12
        push r13
        push r14
        mov r12, rdi
        mov r13, rsi
        mov r14, rdx
        PREEMPT_DISABLE
        call alloc_task_struct
        mov rbx, rax
        PREEMPT_ENABLE
        mov [rbx + TASK_FUNCTION], r12
        mov [rbx + TASK_DATA], r13
        mov qword ptr [rbx + TASK_STATE], TASK_SLEEPING
        lea rdi, [rbx + TASK_COMM]
        mov rsi, r14
        mov edx, 16
        call strlcpy
        mov rdi, rbx
        call copy_thread
        mov rax, rbx
        pop r14
        pop r13
        pop r12
        pop rbx
        RETURN
END kthread_create

# copy_thread(task rdi): the stack __switch_to will find.
FUNC copy_thread
        mov rcx, [rdi + TASK_STACK]
        add rcx, THREAD_SIZE - 16 - SWITCH_FRAME
        mov qword ptr [rcx], 0          # r15 r14 r13 r12 rbx rbp: a backtrace ends here
        mov qword ptr [rcx + 0x08], 0
        mov qword ptr [rcx + 0x10], 0
        mov qword ptr [rcx + 0x18], 0
        mov qword ptr [rcx + 0x20], 0
        mov qword ptr [rcx + 0x28], 0
        lea rax, [rip + ret_from_fork]
        mov [rcx + 0x30], rax
        mov [rdi + TASK_THREAD_SP], rcx
        RETURN
END copy_thread

# A task's first instructions: interrupts off, preempt_count 1, as __schedule left them.
ENTRY ret_from_fork
        call schedule_tail
        CURRENT rbx
        mov rdi, [rbx + TASK_DATA]
        call [rbx + TASK_FUNCTION]
        call do_exit
        ud2
END ret_from_fork

FUNC schedule_tail
        dec qword ptr gs:[PCPU_PREEMPT_COUNT]
        LOCAL_IRQ_ENABLE
        RETURN
END schedule_tail

# do_exit(): the end of the running task. Does not return.
FUNC do_exit
        CURRENT rcx
        mov qword ptr [rcx + TASK_STATE], TASK_DEAD
        call schedule
        ud2
END do_exit

# enqueue_task(task rdi): interrupts off.
FUNC enqueue_task
        mov qword ptr [rdi + TASK_RUN_NEXT], 0
        mov qword ptr [rdi + TASK_ON_RQ], 1
        inc qword ptr gs:[nr_running]
        mov rcx, gs:[rq_tail]
        mov gs:[rq_tail], rdi
        test rcx, rcx
        jz 1f
        mov [rcx + TASK_RUN_NEXT], rdi
        RETURN
1:
        mov gs:[rq_head], rdi
        RETURN
END enqueue_task

# dequeue_task(): rax = the first task, or 0. Interrupts off.
FUNC dequeue_task
        mov rax, qword ptr gs:[rq_head]
        test rax, rax
        jz 1f
        mov rcx, [rax + TASK_RUN_NEXT]
        mov gs:[rq_head], rcx
        mov qword ptr [rax + TASK_ON_RQ], 0
        dec qword ptr gs:[nr_running]
        test rcx, rcx
        jnz 1f
        mov qword ptr gs:[rq_tail], 0
1:
        RETURN
END dequeue_task

# pick_next_task(): rax = who runs now. Interrupts off.
FUNC pick_next_task
        call dequeue_task
        test rax, rax
        jnz 1f
        mov rax, qword ptr gs:[idle_task]
1:
        RETURN
END pick_next_task

# put_prev_task(prev rdi, preempted esi): back into the queue if it can run. A task that was preempted
# can, whatever its state says: it may be on its way to sleep and has not checked yet (PREEMPT_ACTIVE).
FUNC put_prev_task
        cmp rdi, gs:[idle_task]
        je 2f
        test esi, esi
        jnz 1f
        cmp qword ptr [rdi + TASK_STATE], TASK_RUNNING
        jne 2f
1:
        call enqueue_task
2:
        RETURN
END put_prev_task

# __schedule(preempted edi): any state with preempt_count 0.
FUNC __schedule
        push rbx
        push r12
        mov r12d, edi
.Lneed_resched:
        inc qword ptr gs:[PCPU_PREEMPT_COUNT]
        LOCAL_IRQ_SAVE
        mov byte ptr gs:[PCPU_NEED_RESCHED], 0
        CURRENT rbx
        mov rdi, rbx
        mov esi, r12d
        call put_prev_task
        call pick_next_task
        cmp rax, rbx
        je .Lsame
        mov rdi, rbx
        mov rsi, rax
        call context_switch
.Lsame:
        LOCAL_IRQ_RESTORE
        dec qword ptr gs:[PCPU_PREEMPT_COUNT]
        xor r12d, r12d
        inc r12d                        # if it must switch again, that is a preemption
        cmp byte ptr gs:[PCPU_NEED_RESCHED], 0
        jne .Lneed_resched
        pop r12
        pop rbx
        RETURN
END __schedule

# context_switch(prev rdi, next rsi): interrupts off.
FUNC context_switch
        inc qword ptr gs:[nr_switches]
        mov qword ptr [rdi + TASK_ON_CPU], 0
        mov qword ptr [rsi + TASK_ON_CPU], 1
        mov rax, [rsi + TASK_PID]
        mov gs:[PCPU_CURRENT], rsi
        mov gs:[PCPU_PID], ax
        call __switch_to
        RETURN
END context_switch

# __switch_to(prev rdi, next rsi): change stacks. Returns in the other task; prev's callee-saved
# registers lie below its saved rsp. A new task returns to ret_from_fork.
ENTRY __switch_to
        push rbp
        push rbx
        push r12
        push r13
        push r14
        push r15
        mov [rdi + TASK_THREAD_SP], rsp
        mov rsp, [rsi + TASK_THREAD_SP]
        pop r15
        pop r14
        pop r13
        pop r12
        pop rbx
        pop rbp
        ret
END __switch_to

# schedule(): give up the CPU; sleeps if the state was set so.
FUNC schedule
        xor edi, edi
        call __schedule
        RETURN
END schedule

# preempt_schedule(): from preempt_enable. Preserves every register, as the macro promises.
ENTRY preempt_schedule
        push rbp
        mov rbp, rsp
        pushfq
        push rax
        push rcx
        push rdx
        push rsi
        push rdi
        push r8
        push r9
        push r10
        push r11
        test qword ptr [rbp - 8], 0x200         # IF: not from where interrupts are off
        jz 1f
        mov edi, 1
        call __schedule
1:
        pop r11
        pop r10
        pop r9
        pop r8
        pop rdi
        pop rsi
        pop rdx
        pop rcx
        pop rax
        popfq
        pop rbp
        ret
END preempt_schedule

# preempt_schedule_irq(): from ret_from_intr, interrupts off.
FUNC preempt_schedule_irq
        mov edi, 1
        call __schedule
        LOCAL_IRQ_DISABLE
        RETURN
END preempt_schedule_irq

# wake_up_process(task rdi): any state.
FUNC wake_up_process
        LOCAL_IRQ_SAVE
        cmp qword ptr [rdi + TASK_STATE], TASK_SLEEPING
        jne 1f
        mov qword ptr [rdi + TASK_STATE], TASK_RUNNING
        cmp qword ptr [rdi + TASK_ON_RQ], 0
        jne 1f
        cmp rdi, gs:[PCPU_CURRENT]      # on its way to sleep: it will see the state
        je 1f
        call enqueue_task
1:
        LOCAL_IRQ_RESTORE
        RETURN
END wake_up_process

# scheduler_tick(): from the tick, interrupts off: a time slice is one tick.
FUNC scheduler_tick
        cmp qword ptr gs:[nr_running], 0
        je 1f
        call resched_task
1:
        RETURN
END scheduler_tick

FUNC resched_task
        mov byte ptr gs:[PCPU_NEED_RESCHED], 1
        RETURN
END resched_task

# cond_resched(): the safepoint. Interrupts on, nothing held. Where requests are pending the CPU traps,
# and polls again when it comes back: a stop ends only when the word says so.
FUNC cond_resched
1:
        cmp qword ptr gs:[PCPU_REQUESTS], 0
        je 2f
        out PORT_SAFEPOINT, al
        hlt
        jmp 1b
2:
        cmp byte ptr gs:[PCPU_NEED_RESCHED], 0
        je 3f
        call schedule
3:
        RETURN
END cond_resched

# schedule_timeout(ticks rdi): sleep so long, or until woken.
FUNC schedule_timeout
        CURRENT rcx
        PREEMPT_DISABLE
        add rdi, gs:[PCPU_JIFFIES]
        mov [rcx + TASK_TIMEOUT], rdi
        mov qword ptr [rcx + TASK_STATE], TASK_SLEEPING
        PREEMPT_ENABLE
        call schedule
        CURRENT rcx
        mov qword ptr [rcx + TASK_TIMEOUT], 0
        RETURN
END schedule_timeout

FUNC yield
        call schedule
        RETURN
END yield

# cpu_idle(): what a CPU does when no task can run. Does not return.
FUNC cpu_idle
1:
        call cond_resched
        cmp qword ptr gs:[nr_running], 0
        jne 2f
        call default_idle
        jmp 1b
2:
        call schedule
        jmp 1b
END cpu_idle

# default_idle(): wait for an interrupt. No interrupt comes between sti and hlt.
FUNC default_idle
        LOCAL_IRQ_DISABLE
        cmp qword ptr gs:[nr_running], 0
        jne 1f
        LOCAL_IRQ_ENABLE
        hlt
1:
        LOCAL_IRQ_ENABLE
        RETURN
END default_idle

# play_dead(): this CPU leaves the machine. Does not return.
FUNC play_dead
        mov qword ptr gs:[PCPU_ONLINE], 0
1:
        out PORT_CPU_OFFLINE, al
        hlt
        jmp 1b
END play_dead

.rodata
.Lswapper:
        .asciz "swapper"
.Lno_slots_text:
        .asciz "no free task slot"
