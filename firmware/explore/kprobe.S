# A kprobe on the first instruction of a function, push rbp, and its jump optimization.
#
# Armed, the probe is an int3 in place of that byte. Optimized, it is a jmp to a detour over the first
# five bytes, which are three instructions; the detour holds a copy of them and jumps back behind.

.ifdef LAB_KPROBE
.text
        .p2align 6, 0xcc
ENTRY probed
site_probed:
        .byte 0xcc                      # push rbp
        mov rbp, rsp
        nop
probed_rest:
        lea rbx, [rbx + rbx * 2 + 1]
        pop rbp
        ret
END probed

ENTRY kprobe_detour
        push rbp
        mov rbp, rsp
        nop
        jmp probed_rest
END kprobe_detour

# The int3 handler, after nobody else has claimed it; its frame is that of int3 (lab.S).
ENTRY kprobe_int3
        lea rcx, [rip + site_probed]
        cmp [rsp + 0x18], rcx
        jne die_int3
        mov rdx, [rip + kprobe_optimized]
        test rdx, rdx
        jnz .Lkprobe_detour
        inc rcx                         # emulate push rbp, go on behind it
        mov [rsp + 0x18], rcx
        mov rcx, [rsp + 0x30]
        sub rcx, 8
        mov [rcx], rbp
        mov [rsp + 0x30], rcx
        jmp .Lkprobe_out
.Lkprobe_detour:
        lea rcx, [rip + kprobe_detour]
        mov [rsp + 0x18], rcx
.Lkprobe_out:
        pop rdx
        pop rcx
        pop rax
        iretq
END kprobe_int3

.data
kprobe_optimized:
        .quad 0
.endif
