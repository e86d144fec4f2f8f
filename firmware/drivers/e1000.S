# e1000: a network card in MAC loop-back: each frame that is sent is received. There are no sockets
# here, so it has a node.

.include "linkage.inc"
.include "percpu.inc"
.include "driver.inc"

# The ring of one user: four descriptors.
.set E1000_NEXT_TO_USE, 0
.set E1000_NEXT_TO_CLEAN, 8
.set E1000_DESC, 16
.set E1000_DESC_SHIFT, 6
.set E1000_NR_DESC, 4

# A descriptor
.set E1000_LEN, 0
.set E1000_DATA, 8
.set E1000_MTU, 56

# e1000_desc(ring, index): rax = the descriptor of that running number.
FUNC e1000_desc
        and esi, E1000_NR_DESC - 1
        shl esi, E1000_DESC_SHIFT
        lea rax, [rdi + rsi + E1000_DESC]
        RETURN
END e1000_desc

# e1000_xmit_frame(ring, frame, len): len, -EMSGSIZE, or -EAGAIN if the ring is full.
FUNC e1000_xmit_frame
        push rbx
        push r12
        push r13
        mov rbx, rdi
        mov r12, rsi
        mov r13, rdx
        mov rax, E_MSGSIZE
        cmp rdx, E1000_MTU
        ja 1f
        mov rsi, [rbx + E1000_NEXT_TO_USE]
        mov rcx, rsi
        sub rcx, [rbx + E1000_NEXT_TO_CLEAN]
        mov rax, E_AGAIN
        cmp rcx, E1000_NR_DESC
        jae 1f
        call e1000_desc
        mov [rax + E1000_LEN], r13
        lea rdi, [rax + E1000_DATA]
        mov rsi, r12
        mov rdx, r13
        call memcpy
        inc qword ptr [rbx + E1000_NEXT_TO_USE]
        mov rax, r13
1:      pop r13
        pop r12
        pop rbx
        RETURN
END e1000_xmit_frame

# e1000_clean_rx(ring, buf, count): the next frame, cut to count; its bytes, or -EAGAIN.
FUNC e1000_clean_rx
        push rbx
        push r12
        push r13
        mov rbx, rdi
        mov r12, rsi
        mov r13, rdx
        mov rsi, [rbx + E1000_NEXT_TO_CLEAN]
        mov rax, E_AGAIN
        cmp rsi, [rbx + E1000_NEXT_TO_USE]
        je 1f
        call e1000_desc
        mov rcx, [rax + E1000_LEN]
        cmp r13, rcx
        cmova r13, rcx
        mov rdi, r12
        lea rsi, [rax + E1000_DATA]
        mov rdx, r13
        call memcpy
        inc qword ptr [rbx + E1000_NEXT_TO_CLEAN]
        mov rax, r13
1:      pop r13
        pop r12
        pop rbx
        RETURN
END e1000_clean_rx

FUNC e1000_read                 # (file, buf, count, ppos)
        mov rdi, [rdi + F_PRIVATE]
        call e1000_clean_rx
        DEVICE_ACCOUNT e1000, DEV_RX
        RETURN
END e1000_read

FUNC e1000_write                # (file, buf, count, ppos)
        mov rdi, [rdi + F_PRIVATE]
        call e1000_xmit_frame
        DEVICE_ACCOUNT e1000, DEV_TX
        inc qword ptr gs:[e1000_state + DEV_RING]
        RETURN
END e1000_write

FUNC e1000_poll                 # (file)
        mov rdi, [rdi + F_PRIVATE]
        mov rcx, [rdi + E1000_NEXT_TO_USE]
        sub rcx, [rdi + E1000_NEXT_TO_CLEAN]
        xor eax, eax
        test rcx, rcx
        setnz al                        # POLLIN
        cmp rcx, E1000_NR_DESC
        je 1f
        or eax, POLLOUT
1:      RETURN
END e1000_poll

DRIVER e1000, "eth0", misc_register, S_IFCHR, MISC_MAJOR << 8 | 200, 272
