# Messages, through the debug console at port 0xe9, and the end of it all.

.include "linkage.inc"
.include "percpu.inc"

# console_write(text rdi): bytes up to the NUL.
FUNC console_write
1:
        movzx eax, byte ptr [rdi]
        test al, al
        jz 2f
        out PORT_DEBUG_CONSOLE, al
        inc rdi
        jmp 1b
2:
        RETURN
END console_write

# printk(text rdi): one line.
FUNC printk
        call console_write
        lea rdi, [rip + .Lnewline]
        call console_write
        RETURN
END printk

# panic(text rdi): any state. Does not return.
FUNC panic
        LOCAL_IRQ_DISABLE
        push rdi
        lea rdi, [rip + .Lpanic]
        call console_write
        pop rdi
        call printk
        mov al, 1
        out PORT_EXIT, al
1:
        hlt
        jmp 1b
END panic

.rodata
.Lnewline:
        .asciz "\n"
.Lpanic:
        .asciz "Kernel panic - not syncing: "
