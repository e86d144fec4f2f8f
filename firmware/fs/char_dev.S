# Character devices: from major number to driver. Each CPU has devices and a table of its own.

.include "linkage.inc"
.include "percpu.inc"
.include "fs.inc"

.set MAX_CHRDEV, 16
.percpu chrdevs, 128                    # file_operations by major number

# register_chrdev(major, fops): 0, or -EBUSY if the number is taken.
FUNC register_chrdev
        mov rax, E_INVAL
        cmp rdi, MAX_CHRDEV
        jae 1f
        mov rax, E_BUSY
        cmp qword ptr gs:[chrdevs + rdi*8], 0
        jne 1f
        mov gs:[chrdevs + rdi*8], rsi
        xor eax, eax
1:      RETURN
END register_chrdev

# chrdev_open(inode, file): hands the file to the driver, and lets that open it.
FUNC chrdev_open
        mov rax, E_NXIO
        mov rcx, [rdi + I_RDEV]
        shr rcx, 8
        cmp rcx, MAX_CHRDEV
        jae 1f
        mov rcx, gs:[chrdevs + rcx*8]
        test rcx, rcx
        jz 1f
        mov [rsi + F_OP], rcx
        xor eax, eax
        mov rcx, [rcx + FOP_OPEN]
        test rcx, rcx
        jz 1f
        call rcx
1:      RETURN
END chrdev_open

.section .rodata
.p2align 3
def_chr_fops:
        .quad 0, 0, 0, 0, 0, chrdev_open, 0
