# poll(), of one descriptor and without sleep: enough for who only asks.

.include "linkage.inc"
.include "percpu.inc"
.include "fs.inc"

# do_pollfd(fd, events): rax = which of events, or of errors, are there; POLLNVAL without a file.
FUNC do_pollfd
        push rbx
        push r12
        mov r12, rsi
        call fget
        mov rbx, rax
        test rax, rax
        mov eax, POLLNVAL
        jz 2f
        mov eax, DEFAULT_POLLMASK
        mov rcx, [rbx + F_OP]
        mov rcx, [rcx + FOP_POLL]
        test rcx, rcx
        jz 1f
        mov rdi, rbx
        call rcx
1:      or r12d, POLLERR | POLLHUP      # these are told unasked
        and r12d, eax
        mov rdi, rbx
        call fput
        mov eax, r12d
2:      pop r12
        pop rbx
        RETURN
END do_pollfd

# sys_poll(fd, events)
FUNC sys_poll
        call do_pollfd
        RETURN
END sys_poll
