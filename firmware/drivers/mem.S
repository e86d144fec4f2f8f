# The memory devices: null, zero, full and random.

.include "linkage.inc"
.include "percpu.inc"
.include "driver.inc"

.set NULL_MINOR, 3
.set ZERO_MINOR, 5
.set FULL_MINOR, 7
.set RANDOM_MINOR, 8

# The context of an open /dev/random. The others have one too, and leave it alone.
.set RANDOM_POOL, 0
.set MEM_CONTEXT, 32

# mem_register(driver): the first of them registers the class.
FUNC mem_register
        mov edi, MEM_MAJOR
        lea rsi, [rip + memory_fops]
        call register_chrdev
        xor eax, eax
        RETURN
END mem_register

# memory_open(inode, file): the class's open: hands the file to the device of that minor number.
FUNC memory_open
        movzx eax, byte ptr [rdi + I_RDEV]
        lea rdx, [rip + devlist]
1:      mov rcx, [rdx + 8]
        test rcx, rcx
        jz 2f
        cmp [rdx], rax
        je 3f
        add rdx, 16
        jmp 1b
2:      mov rax, E_NXIO
        jmp 4f
3:      mov [rsi + F_OP], rcx
        call qword ptr [rcx + FOP_OPEN]
4:      RETURN
END memory_open

# clear_user(buf, count): zeroes the reader's buffer; rax = count.
FUNC clear_user
        push rbx
        mov rbx, rsi
        mov rdx, rsi
        xor esi, esi
        call memset
        mov rax, rbx
        pop rbx
        RETURN
END clear_user

FUNC null_read                  # (file, buf, count, ppos): always at its end
        xor eax, eax
        RETURN
END null_read

FUNC null_write                 # (file, buf, count, ppos)
        mov rax, rdx
        add gs:[null_state + DEV_TX], rax
        RETURN
END null_write

FUNC null_poll                  # (file)
        mov eax, DEFAULT_POLLMASK
        RETURN
END null_poll

FUNC zero_read                  # (file, buf, count, ppos)
        mov rdi, rsi
        mov rsi, rdx
        call clear_user
        add gs:[zero_state + DEV_RX], rax
        RETURN
END zero_read

FUNC zero_write                 # (file, buf, count, ppos)
        mov rax, rdx
        add gs:[zero_state + DEV_TX], rax
        RETURN
END zero_write

FUNC zero_poll                  # (file)
        mov eax, DEFAULT_POLLMASK
        RETURN
END zero_poll

FUNC full_read                  # (file, buf, count, ppos)
        mov rdi, rsi
        mov rsi, rdx
        call clear_user
        add gs:[full_state + DEV_RX], rax
        RETURN
END full_read

FUNC full_write                 # (file, buf, count, ppos): never room
        inc qword ptr gs:[full_state + DEV_ERRORS]
        mov rax, E_NOSPC
        RETURN
END full_write

FUNC full_poll                  # (file)
        mov eax, DEFAULT_POLLMASK
        RETURN
END full_poll

# add_entropy_words(pool, buf, count): stirs bytes into the pool.
FUNC add_entropy_words
        mov rax, [rdi]
        mov r8, 0x9e3779b97f4a7c15
1:      sub rdx, 1
        jb 2f
        movzx ecx, byte ptr [rsi]
        inc rsi
        xor rax, rcx
        imul rax, r8
        rol rax, 23
        jmp 1b
2:      mov [rdi], rax
        RETURN
END add_entropy_words

# extract_entropy(pool, buf, count): fills buf with pseudo-random bytes; rax = count. The pool of one
# open file is a function of what was written to it: users get the same bytes in each run.
FUNC extract_entropy
        push rbx
        push r12
        push r13
        push r14
        mov rbx, rdi
        mov r12, rsi
        mov r13, rdx
        mov r14, rdx
        cmp qword ptr [rbx], 0
        jne 1f
        mov qword ptr [rbx], 1          # the generator does not leave 0
1:      test r13, r13
        jz 3f
        mov rdi, rbx
        call prandom_u64
        mov ecx, 8
        cmp rcx, r13
        cmova rcx, r13
        sub r13, rcx
2:      mov [r12], al
        shr rax, 8
        inc r12
        dec ecx
        jnz 2b
        jmp 1b
3:      mov rax, r14
        pop r14
        pop r13
        pop r12
        pop rbx
        RETURN
END extract_entropy

FUNC random_read                # (file, buf, count, ppos)
        mov rdi, [rdi + F_PRIVATE]
        call extract_entropy
        add gs:[random_state + DEV_RX], rax
        RETURN
END random_read

FUNC random_write               # (file, buf, count, ppos)
        push rbx
        mov rbx, rdx
        mov rdi, [rdi + F_PRIVATE]
        call add_entropy_words
        mov rax, rbx
        add gs:[random_state + DEV_TX], rax
        pop rbx
        RETURN
END random_write

FUNC random_poll                # (file): readable once something was stirred in
        mov rdi, [rdi + F_PRIVATE]
        mov eax, POLLOUT
        cmp qword ptr [rdi + RANDOM_POOL], 0
        je 1f
        or eax, POLLIN
1:      RETURN
END random_poll

DRIVER null, "null", mem_register, S_IFCHR, MEM_MAJOR << 8 | NULL_MINOR, MEM_CONTEXT
DRIVER zero, "zero", mem_register, S_IFCHR, MEM_MAJOR << 8 | ZERO_MINOR, MEM_CONTEXT
DRIVER full, "full", mem_register, S_IFCHR, MEM_MAJOR << 8 | FULL_MINOR, MEM_CONTEXT
DRIVER random, "random", mem_register, S_IFCHR, MEM_MAJOR << 8 | RANDOM_MINOR, MEM_CONTEXT

.section .rodata
.p2align 3
memory_fops:
        .quad 0, 0, 0, 0, 0, memory_open, 0
devlist:                                # minor, operations
        .quad NULL_MINOR, null_fops
        .quad ZERO_MINOR, zero_fops
        .quad FULL_MINOR, full_fops
        .quad RANDOM_MINOR, random_fops
        .quad 0, 0
