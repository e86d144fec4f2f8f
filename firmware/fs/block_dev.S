# Block devices: from major number to driver. Without a buffer cache: a driver is asked directly.

.include "linkage.inc"
.include "percpu.inc"
.include "fs.inc"

.set MAX_BLKDEV, 16
.percpu blkdevs, 128                    # file_operations by major number

# register_blkdev(major, fops): 0, or -EBUSY if the number is taken.
FUNC register_blkdev
        mov rax, E_INVAL
        cmp rdi, MAX_BLKDEV
        jae 1f
        mov rax, E_BUSY
        cmp qword ptr gs:[blkdevs + rdi*8], 0
        jne 1f
        mov gs:[blkdevs + rdi*8], rsi
        xor eax, eax
1:      RETURN
END register_blkdev

# blkdev_open(inode, file): hands the file to the driver, and lets that open it.
FUNC blkdev_open
        mov rax, E_NXIO
        mov rcx, [rdi + I_RDEV]
        shr rcx, 8
        cmp rcx, MAX_BLKDEV
        jae 1f
        mov rcx, gs:[blkdevs + rcx*8]
        test rcx, rcx
        jz 1f
        mov [rsi + F_OP], rcx
        xor eax, eax
        mov rcx, [rcx + FOP_OPEN]
        test rcx, rcx
        jz 1f
        call rcx
1:      RETURN
END blkdev_open

.section .rodata
.p2align 3
def_blk_fops:
        .quad 0, 0, 0, 0, 0, blkdev_open, 0
