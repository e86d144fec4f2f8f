# LAB_MIDCALL: a site whose five bytes are a call and something else, so that the call returns into
# them. The callee returns with interrupts off: while it runs somebody may stop the machine, but not
# between its return and the end of the site.

.ifdef LAB_MIDCALL
.text
        .p2align 6, 0xcc
ENTRY midcall
        lea rax, [rip + lock_irq]
site_midcall:
        call rax
        nop dword ptr [rax]
        lea rbx, [rbx + rbx * 2 + 1]
        sti
        ret
END midcall

ENTRY lock_irq
        inc qword ptr gs:[CPU_SCRATCH]
        cli
        ret
END lock_irq
.endif
