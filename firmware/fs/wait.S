# Wait queues: where a task sleeps until another task of its CPU has changed something.
# A sleeper tests its condition, queues itself and marks itself sleeping in one stretch with
# preemption off. The waker runs on the same CPU, so that no wake-up falls in between.

.include "linkage.inc"
.include "percpu.inc"
.include "wait.inc"

# init_waitqueue_head(queue)
FUNC init_waitqueue_head
        mov [rdi + WQ_NEXT], rdi
        mov [rdi + WQ_PREV], rdi
        RETURN
END init_waitqueue_head

# waitqueue_active(queue): 1 if someone waits. With preemption off, or the answer is old at once.
FUNC waitqueue_active
        xor eax, eax
        cmp [rdi + WQ_NEXT], rdi
        setne al
        RETURN
END waitqueue_active

# add_wait_queue(queue, wait): at the tail, so that who waits longest is woken first.
FUNC add_wait_queue
        PREEMPT_DISABLE
        mov rax, [rdi + WQ_PREV]
        mov [rsi + WQ_NEXT], rdi
        mov [rsi + WQ_PREV], rax
        mov [rax + WQ_NEXT], rsi
        mov [rdi + WQ_PREV], rsi
        PREEMPT_ENABLE
        RETURN
END add_wait_queue

# remove_wait_queue(queue, wait): wait must be queued.
FUNC remove_wait_queue
        PREEMPT_DISABLE
        mov rax, [rsi + WQ_NEXT]
        mov rcx, [rsi + WQ_PREV]
        mov [rcx + WQ_NEXT], rax
        mov [rax + WQ_PREV], rcx
        mov qword ptr [rsi + WQ_NEXT], 0
        PREEMPT_ENABLE
        RETURN
END remove_wait_queue

# prepare_to_wait(queue, wait): queues the current task and marks it sleeping; schedule() then
# sleeps. WQ_NEXT of a fresh wait must be 0. Called with preemption off, see above.
FUNC prepare_to_wait
        CURRENT rcx
        mov [rsi + WAIT_TASK], rcx
        mov [rcx + TASK_WAITING_ON], rdi
        mov qword ptr [rcx + TASK_STATE], TASK_SLEEPING
        cmp qword ptr [rsi + WQ_NEXT], 0
        jne 1f
        call add_wait_queue
1:      RETURN
END prepare_to_wait

# finish_wait(queue, wait): the current task runs on, whoever woke it.
FUNC finish_wait
        CURRENT rcx
        mov qword ptr [rcx + TASK_STATE], TASK_RUNNING
        mov qword ptr [rcx + TASK_WAITING_ON], 0
        PREEMPT_DISABLE
        cmp qword ptr [rsi + WQ_NEXT], 0
        je 1f
        call remove_wait_queue
1:      PREEMPT_ENABLE
        RETURN
END finish_wait

# autoremove_wake_function(queue, wait): wakes the waiter. Its entry lies on its stack, which
# stays valid while preemption is off.
FUNC autoremove_wake_function
        push rbx
        mov rbx, [rsi + WAIT_TASK]
        call remove_wait_queue
        mov rdi, rbx
        call wake_up_process
        pop rbx
        RETURN
END autoremove_wake_function

# __wake_up_common(queue): wakes all. Preemption is off.
FUNC __wake_up_common
        push rbx
        mov rbx, rdi
1:      mov rsi, [rbx + WQ_NEXT]
        cmp rsi, rbx
        je 2f
        mov rdi, rbx
        call autoremove_wake_function
        jmp 1b
2:      pop rbx
        RETURN
END __wake_up_common

# wake_up(queue): wakes all who wait; from task context.
FUNC wake_up
        PREEMPT_DISABLE
        call __wake_up_common
        PREEMPT_ENABLE
        RETURN
END wake_up
