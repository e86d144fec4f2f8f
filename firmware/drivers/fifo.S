# What the byte stream drivers share: a FIFO for each open file (see FIFO_DRIVER).

.include "linkage.inc"
.include "percpu.inc"
.include "driver.inc"
.include "kfifo.inc"

# fifo_transmit(fifo, buf, count, capacity): rax = bytes that found room; -EAGAIN if none did. A
# zeroed context becomes a FIFO at its first use.
FUNC fifo_transmit
        push rbx
        mov rbx, rdx
        mov [rdi + KFIFO_CAPACITY], rcx
        call __kfifo_put
        test rax, rax
        jnz 1f
        test rbx, rbx
        jz 1f
        mov rax, E_AGAIN
1:      pop rbx
        RETURN
END fifo_transmit

# fifo_receive(fifo, buf, count): rax = bytes that were there; -EAGAIN if none were.
FUNC fifo_receive
        push rbx
        mov rbx, rdx
        xor eax, eax
        cmp qword ptr [rdi + KFIFO_CAPACITY], 0
        je 1f                           # nothing was ever sent
        call __kfifo_get
1:      test rax, rax
        jnz 2f
        test rbx, rbx
        jz 2f
        mov rax, E_AGAIN
2:      pop rbx
        RETURN
END fifo_receive

# fifo_poll(fifo, capacity): POLLIN if there are bytes, POLLOUT if there is room.
FUNC fifo_poll
        push rbx
        mov rbx, rsi
        call __kfifo_len
        xor ecx, ecx
        test rax, rax
        jz 1f
        or ecx, POLLIN
1:      cmp rax, rbx
        je 2f
        or ecx, POLLOUT
2:      mov eax, ecx
        pop rbx
        RETURN
END fifo_poll
