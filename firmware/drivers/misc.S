# Misc devices: many drivers, one major number; the minor number tells them apart.

.include "linkage.inc"
.include "percpu.inc"
.include "driver.inc"

.set MAX_MISC, 8
.percpu misc_list, 64                   # struct device_driver *
.percpu nr_misc, 8

# misc_find(minor): rax = the driver, or 0.
FUNC misc_find
        xor ecx, ecx
1:      xor eax, eax
        cmp rcx, gs:[nr_misc]
        jae 2f
        mov rax, gs:[misc_list + rcx*8]
        inc rcx
        cmp [rax + DRV_RDEV], dil
        jne 1b
2:      RETURN
END misc_find

# misc_register(driver): 0, or -EBUSY if its minor number is taken. The first one registers the class.
FUNC misc_register
        push rbx
        mov rbx, rdi
        mov rdi, [rbx + DRV_RDEV]
        call misc_find
        test rax, rax
        mov rax, E_BUSY
        jnz 2f
        mov rcx, gs:[nr_misc]
        mov rax, E_NOSPC
        cmp rcx, MAX_MISC
        jae 2f
        mov gs:[misc_list + rcx*8], rbx
        inc qword ptr gs:[nr_misc]
        xor eax, eax
        test rcx, rcx
        jnz 2f
        mov edi, MISC_MAJOR
        lea rsi, [rip + misc_fops]
        call register_chrdev
2:      pop rbx
        RETURN
END misc_register

# misc_open(inode, file): the class's open: hands the file to the driver of that minor number.
FUNC misc_open
        push rbx
        push r12
        mov rbx, rdi
        mov r12, rsi
        mov rdi, [rdi + I_RDEV]
        call misc_find
        mov rcx, rax
        test rax, rax
        mov rax, E_NXIO
        jz 1f
        mov rcx, [rcx + DRV_FOPS]
        mov [r12 + F_OP], rcx
        mov rdi, rbx
        mov rsi, r12
        call qword ptr [rcx + FOP_OPEN]
1:      pop r12
        pop rbx
        RETURN
END misc_open

.section .rodata
.p2align 3
misc_fops:
        .quad 0, 0, 0, 0, 0, misc_open, 0
