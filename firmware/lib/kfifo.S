# A byte FIFO (kernel/kfifo.c in its time): one reader and one writer need no lock, more need preemption off.
# in and out count bytes for ever; the buffer, a power of two in size, follows the header.

.include "linkage.inc"
.include "percpu.inc"
.include "kfifo.inc"

# kfifo_init(fifo, bytes): bytes is a power of two.
FUNC kfifo_init
        mov [rdi + KFIFO_CAPACITY], rsi
        mov qword ptr [rdi + KFIFO_IN], 0
        mov qword ptr [rdi + KFIFO_OUT], 0
        RETURN
END kfifo_init

# __kfifo_len(fifo): bytes that can be read.
FUNC __kfifo_len
        mov rax, [rdi + KFIFO_IN]
        sub rax, [rdi + KFIFO_OUT]
        RETURN
END __kfifo_len

# __kfifo_reset(fifo)
FUNC __kfifo_reset
        mov qword ptr [rdi + KFIFO_IN], 0
        mov qword ptr [rdi + KFIFO_OUT], 0
        RETURN
END __kfifo_reset

# kfifo_span(fifo, position, len): how many of len bytes lie in front of the buffer's end; rax =
# that, rdx = address of the first. The rest begins at KFIFO_BUFFER.
FUNC kfifo_span
        mov rax, [rdi + KFIFO_CAPACITY]
        mov rcx, rax
        dec rcx
        and rsi, rcx
        sub rax, rsi
        cmp rax, rdx
        cmova rax, rdx
        lea rdx, [rdi + rsi + KFIFO_BUFFER]
        RETURN
END kfifo_span

# __kfifo_put(fifo, buf, len): returns how many bytes found room.
FUNC __kfifo_put
        push rbx
        push r12
        push r13
        push r14
        mov rbx, rdi
        mov r12, rsi
        mov r13, [rbx + KFIFO_CAPACITY]
        add r13, [rbx + KFIFO_OUT]
        sub r13, [rbx + KFIFO_IN]
        cmp r13, rdx
        cmova r13, rdx                  # r13 = min(len, room)
        mov rsi, [rbx + KFIFO_IN]
        mov rdx, r13
        call kfifo_span
        mov r14, rax
        mov rdi, rdx
        mov rsi, r12
        mov rdx, r14
        call memcpy
        lea rdi, [rbx + KFIFO_BUFFER]
        lea rsi, [r12 + r14]
        mov rdx, r13
        sub rdx, r14
        call memcpy
        add [rbx + KFIFO_IN], r13       # only now a reader may see them
        mov rax, r13
        pop r14
        pop r13
        pop r12
        pop rbx
        RETURN
END __kfifo_put

# __kfifo_get(fifo, buf, len): returns how many bytes there were.
FUNC __kfifo_get
        push rbx
        push r12
        push r13
        push r14
        mov rbx, rdi
        mov r12, rsi
        mov r13, [rbx + KFIFO_IN]
        sub r13, [rbx + KFIFO_OUT]
        cmp r13, rdx
        cmova r13, rdx                  # r13 = min(len, bytes there)
        mov rsi, [rbx + KFIFO_OUT]
        mov rdx, r13
        call kfifo_span
        mov r14, rax
        mov rdi, r12
        mov rsi, rdx
        mov rdx, r14
        call memcpy
        lea rdi, [r12 + r14]
        lea rsi, [rbx + KFIFO_BUFFER]
        mov rdx, r13
        sub rdx, r14
        call memcpy
        add [rbx + KFIFO_OUT], r13
        mov rax, r13
        pop r14
        pop r13
        pop r12
        pop rbx
        RETURN
END __kfifo_get
