# Pipes: bytes from one task to another, with sleep on either side.
# A pipe belongs to one CPU; its tasks meet with preemption off, where Linux takes i_mutex.

.include "linkage.inc"
.include "percpu.inc"
.include "fs.inc"
.include "wait.inc"
.include "kfifo.inc"

# struct pipe_inode_info
.set PIPE_WAIT, 0               # one queue for both sides
.set PIPE_READERS, 16
.set PIPE_WRITERS, 24
.set PIPE_FIFO, 32              # struct kfifo of PIPE_BUF bytes
.set PIPE_BUF, 128
.set SIZEOF_PIPE, 184

# pipe_new(): rax = a pipe without ends, or 0.
FUNC pipe_new
        push rbx
        mov edi, SIZEOF_PIPE
        call kmalloc
        test rax, rax
        jz 1f
        mov rbx, rax
        mov qword ptr [rbx + PIPE_READERS], 0
        mov qword ptr [rbx + PIPE_WRITERS], 0
        lea rdi, [rbx + PIPE_WAIT]
        call init_waitqueue_head
        lea rdi, [rbx + PIPE_FIFO]
        mov esi, PIPE_BUF
        call kfifo_init
        mov rax, rbx
1:      pop rbx
        RETURN
END pipe_new

# free_pipe_info(pipe)
FUNC free_pipe_info
        call kfree
        RETURN
END free_pipe_info

# pipe_wait(pipe): sleeps until the other side has done something, or has gone. Called with
# preemption off once, which is given up for the sleep: test again afterwards.
FUNC pipe_wait
        push rbx
        sub rsp, SIZEOF_WAIT_QUEUE
        mov rbx, rdi
        mov qword ptr [rsp + WQ_NEXT], 0
        lea rdi, [rbx + PIPE_WAIT]
        mov rsi, rsp
        call prepare_to_wait
        PREEMPT_ENABLE
        call schedule
        lea rdi, [rbx + PIPE_WAIT]
        mov rsi, rsp
        call finish_wait
        PREEMPT_DISABLE
        add rsp, SIZEOF_WAIT_QUEUE
        pop rbx
        RETURN
END pipe_wait

# pipe_may_wait(file): 0, or -EAGAIN if this file must not sleep.
FUNC pipe_may_wait
        xor eax, eax
        test dword ptr [rdi + F_FLAGS], O_NONBLOCK
        jz 1f
        mov rax, E_AGAIN
1:      RETURN
END pipe_may_wait

# pipe_read(file, buf, count, ppos): what is there, but at least one byte; 0 once it is empty and
# has no writer.
FUNC pipe_read
        push rbx
        push r12
        push r13
        push r14
        mov r14, rdi
        mov rbx, [rdi + F_PRIVATE]
        mov r12, rsi
        mov r13, rdx
        PREEMPT_DISABLE
1:      lea rdi, [rbx + PIPE_FIFO]
        mov rsi, r12
        mov rdx, r13
        call __kfifo_get
        test rax, rax
        jnz 2f
        test r13, r13
        jz 3f
        cmp qword ptr [rbx + PIPE_WRITERS], 0
        je 3f
        mov rdi, r14
        call pipe_may_wait
        test rax, rax
        jnz 3f
        mov rdi, rbx
        call pipe_wait
        jmp 1b
2:      mov r13, rax
        lea rdi, [rbx + PIPE_WAIT]
        call wake_up
        mov rax, r13
3:      PREEMPT_ENABLE
        pop r14
        pop r13
        pop r12
        pop rbx
        RETURN
END pipe_read

# pipe_write(file, buf, count, ppos): all of it, in pieces if need be. -EPIPE without a reader.
FUNC pipe_write
        push rbx
        push r12
        push r13
        push r14
        push r15
        mov r14, rdi
        mov rbx, [rdi + F_PRIVATE]
        mov r12, rsi
        mov r13, rdx                    # what remains
        xor r15d, r15d                  # what is done
        PREEMPT_DISABLE
1:      mov rax, E_PIPE
        cmp qword ptr [rbx + PIPE_READERS], 0
        je 3f
        lea rdi, [rbx + PIPE_FIFO]
        mov rsi, r12
        mov rdx, r13
        call __kfifo_put
        add r12, rax
        add r15, rax
        sub r13, rax
        test rax, rax
        jz 2f
        lea rdi, [rbx + PIPE_WAIT]
        call wake_up
2:      xor eax, eax
        test r13, r13
        jz 3f
        mov rdi, r14
        call pipe_may_wait
        test rax, rax
        jnz 3f
        mov rdi, rbx
        call pipe_wait
        jmp 1b
3:      test r15, r15
        cmovnz rax, r15
        PREEMPT_ENABLE
        pop r15
        pop r14
        pop r13
        pop r12
        pop rbx
        RETURN
END pipe_write

# pipe_poll(file): what this end can do at once.
FUNC pipe_poll
        mov rcx, [rdi + F_PRIVATE]
        mov rsi, [rdi + F_MODE]
        lea rdi, [rcx + PIPE_FIFO]
        push rcx
        push rsi
        call __kfifo_len
        pop rsi
        pop rcx
        mov rdx, rax
        xor eax, eax
        test esi, FMODE_READ
        jz 2f
        test rdx, rdx
        jz 1f
        or eax, POLLIN
1:      cmp qword ptr [rcx + PIPE_WRITERS], 0
        jne 4f
        or eax, POLLHUP
        jmp 4f
2:      cmp rdx, PIPE_BUF
        je 3f
        or eax, POLLOUT
3:      cmp qword ptr [rcx + PIPE_READERS], 0
        jne 4f
        or eax, POLLERR
4:      RETURN
END pipe_poll

# pipe_release(pipe): an end has gone. Tells the other side, or frees the pipe.
FUNC pipe_release
        PREEMPT_DISABLE
        mov rax, [rdi + PIPE_READERS]
        add rax, [rdi + PIPE_WRITERS]
        jz 1f
        lea rdi, [rdi + PIPE_WAIT]
        call wake_up
        jmp 2f
1:      call free_pipe_info
2:      PREEMPT_ENABLE
        xor eax, eax
        RETURN
END pipe_release

# pipe_read_release(inode, file)
FUNC pipe_read_release
        mov rdi, [rsi + F_PRIVATE]
        dec qword ptr [rdi + PIPE_READERS]
        call pipe_release
        RETURN
END pipe_read_release

# pipe_write_release(inode, file)
FUNC pipe_write_release
        mov rdi, [rsi + F_PRIVATE]
        dec qword ptr [rdi + PIPE_WRITERS]
        call pipe_release
        RETURN
END pipe_write_release

# create_read_pipe(pipe): rax = a file for its reading end, or 0.
FUNC create_read_pipe
        push rbx
        mov rbx, rdi
        call get_empty_filp
        test rax, rax
        jz 1f
        lea rcx, [rip + read_pipe_fops]
        mov [rax + F_OP], rcx
        mov qword ptr [rax + F_MODE], FMODE_READ
        mov [rax + F_PRIVATE], rbx
        inc qword ptr [rbx + PIPE_READERS]
1:      pop rbx
        RETURN
END create_read_pipe

# create_write_pipe(pipe): rax = a file for its writing end, or 0.
FUNC create_write_pipe
        push rbx
        mov rbx, rdi
        call get_empty_filp
        test rax, rax
        jz 1f
        lea rcx, [rip + write_pipe_fops]
        mov [rax + F_OP], rcx
        mov qword ptr [rax + F_FLAGS], O_WRONLY
        mov qword ptr [rax + F_MODE], FMODE_WRITE
        mov [rax + F_PRIVATE], rbx
        inc qword ptr [rbx + PIPE_WRITERS]
1:      pop rbx
        RETURN
END create_write_pipe

# do_pipe(files): makes a pipe, stores the files of both its ends: reading, writing.
FUNC do_pipe
        push rbx
        push r12
        mov r12, rdi
        call pipe_new
        test rax, rax
        jz 3f
        mov rbx, rax
        mov rdi, rax
        call create_read_pipe
        mov [r12], rax
        test rax, rax
        jz 2f
        mov rdi, rbx
        call create_write_pipe
        mov [r12 + 8], rax
        test rax, rax
        jz 1f
        xor eax, eax
        jmp 4f
1:      mov rdi, [r12]
        call fput                       # the last end frees the pipe
        jmp 3f
2:      mov rdi, rbx
        call free_pipe_info
3:      mov rax, E_NOMEM
4:      pop r12
        pop rbx
        RETURN
END do_pipe

# sys_pipe(fds): stores two descriptors, 8 bytes each: reading, writing.
FUNC sys_pipe
        push rbx
        push r12
        push r13
        sub rsp, 16
        mov rbx, rdi
        mov rdi, rsp
        call do_pipe
        test rax, rax
        jnz 3f
        call get_unused_fd
        JUMP_IF_ERR rax, 2f
        mov r12, rax
        call get_unused_fd
        JUMP_IF_ERR rax, 1f
        mov r13, rax
        mov [rbx], r12
        mov [rbx + 8], r13
        mov rdi, r12
        mov rsi, [rsp]
        call fd_install
        mov rdi, r13
        mov rsi, [rsp + 8]
        call fd_install
        xor eax, eax
        jmp 3f
1:      mov rdi, r12
        mov r12, rax
        call put_unused_fd
        mov rax, r12
2:      mov r12, rax
        mov rdi, [rsp]
        call fput
        mov rdi, [rsp + 8]
        call fput
        mov rax, r12
3:      add rsp, 16
        pop r13
        pop r12
        pop rbx
        RETURN
END sys_pipe

.section .rodata
.p2align 3
read_pipe_fops:
        .quad 0, pipe_read, 0, pipe_poll, 0, 0, pipe_read_release
write_pipe_fops:
        .quad 0, 0, pipe_write, pipe_poll, 0, 0, pipe_write_release
