# What the drivers of register banks share (see REGISTER_DRIVER).

.include "linkage.inc"
.include "percpu.inc"
.include "driver.inc"

# registers_span(pos, count, regs): how many whole registers from byte pos on; -EINVAL if pos lies
# inside one or count is less than one.
FUNC registers_span
        mov rax, E_INVAL
        test dil, 7
        jnz 1f
        shr rsi, 3
        jz 1f
        shr rdi, 3
        xor eax, eax
        sub rdx, rdi
        jbe 1f
        cmp rsi, rdx
        cmova rsi, rdx
        mov rax, rsi
1:      RETURN
END registers_span

# registers_copy(dst, src, n, convert): n registers, each through convert(value). rax = bytes.
FUNC registers_copy
        push rbx
        push r12
        push r13
        push r14
        push r15
        mov r12, rdi
        mov r13, rsi
        mov r14, rdx
        mov r15, rcx
        xor ebx, ebx
1:      cmp rbx, r14
        jae 2f
        mov rdi, [r13 + rbx*8]
        call r15
        mov [r12 + rbx*8], rax
        inc rbx
        jmp 1b
2:      lea rax, [rbx*8]
        pop r15
        pop r14
        pop r13
        pop r12
        pop rbx
        RETURN
END registers_copy

# registers_read(file, buf, count, ppos, regs, convert)
FUNC registers_read
        push rbx
        push r12
        push r13
        push r14
        mov rbx, rdi
        mov r12, rsi
        mov r13, rcx
        mov r14, r9
        mov rdi, [r13]
        mov rsi, rdx
        mov rdx, r8
        call registers_span
        test rax, rax
        jle 1f
        mov rdi, r12
        mov rsi, [rbx + F_PRIVATE]
        add rsi, [r13]
        mov rdx, rax
        mov rcx, r14
        call registers_copy
        add [r13], rax
1:      pop r14
        pop r13
        pop r12
        pop rbx
        RETURN
END registers_read

# registers_write(file, buf, count, ppos, regs, convert): -ENOSPC behind the last register.
FUNC registers_write
        push rbx
        push r12
        push r13
        push r14
        mov rbx, rdi
        mov r12, rsi
        mov r13, rcx
        mov r14, r9
        mov rdi, [r13]
        mov rsi, rdx
        mov rdx, r8
        call registers_span
        test rax, rax
        js 1f
        mov rdx, rax
        mov rax, E_NOSPC
        jz 1f
        mov rdi, [rbx + F_PRIVATE]
        add rdi, [r13]
        mov rsi, r12
        mov rcx, r14
        call registers_copy
        add [r13], rax
1:      pop r14
        pop r13
        pop r12
        pop rbx
        RETURN
END registers_write

# registers_poll(bank, regs): always writable, readable once a register is not 0.
FUNC registers_poll
        xor ecx, ecx
1:      or rcx, [rdi]
        add rdi, 8
        dec rsi
        jnz 1b
        xor eax, eax
        test rcx, rcx
        setnz al                        # POLLIN
        or eax, POLLOUT
        RETURN
END registers_poll
