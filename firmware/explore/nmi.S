# NMIs come at any time, on IST 1.
#
#   LAB_NMI_TRACES          the handler calls a function that has a site
#   LAB_NMI_TRACES_OTHER    and another one
#   LAB_NMI_NOTRACE         it calls the same function, built without one
#   LAB_NMI_MODS_CODE       in front of that it does what a patcher is about to do (ftrace_nmi_enter)
#   LAB_NMI_REPEATS         it copes with an NMI that comes in an NMI

.text

#   On the stack of an NMI that may be repeated, from the top:
#       5 words     the frame that the CPU pushes; an NMI in an NMI pushes it there, too
#       2 words     what the entry saves
#       5 words     the frame that the first NMI returns by
#       5 words     the frame that the first NMI was entered with
ENTRY nmi
.ifdef LAB_NMI_REPEATS
        push rdx
        push rax
        lea rdx, [rsp + 0x38]           # the top
        sub rdx, [rsp + 0x28]           # the interrupted stack, below it
        cmp rdx, LAB_STACK
        jae .Lnmi_first
        lea rax, [rip + repeat_nmi]     # it came in an NMI: that one is to run again
        lea rdx, [rip + end_repeat_nmi]
        cmp [rsp + 0x10], rdx
        jae .Lnmi_nested
        cmp [rsp + 0x10], rax
        jae .Lnmi_nested_out            # it is about to, anyway
.Lnmi_nested:
        mov [rsp - 0x28], rax           # ip
        mov rdx, [rsp + 0x18]
        mov [rsp - 0x20], rdx           # cs
        mov rdx, [rsp + 0x20]
        mov [rsp - 0x18], rdx           # flags
        lea rdx, [rsp - 0x50]
        mov [rsp - 0x10], rdx           # sp
        mov rdx, [rsp + 0x30]
        mov [rsp - 0x08], rdx           # ss
.Lnmi_nested_out:
        pop rax
        pop rdx
        iretq
.Lnmi_first:
        pop rax
        pop rdx
        sub rsp, 0x38
        push qword ptr [rsp + 0x58]
        push qword ptr [rsp + 0x58]
        push qword ptr [rsp + 0x58]
        push qword ptr [rsp + 0x58]
        push qword ptr [rsp + 0x58]
repeat_nmi:
        add rsp, 0x50
        push qword ptr [rsp - 0x30]
        push qword ptr [rsp - 0x30]
        push qword ptr [rsp - 0x30]
        push qword ptr [rsp - 0x30]
        push qword ptr [rsp - 0x30]
        sub rsp, 0x28
end_repeat_nmi:
.endif
        push rbx
        push rbp
        mov qword ptr gs:[CPU_IN_NMI], 1
.ifdef LAB_NMI_MODS_CODE
        call ftrace_nmi_enter
.endif
.ifdef LAB_NMI_TRACES
        call work
.endif
.ifdef LAB_NMI_TRACES_OTHER
        call other
.endif
.ifdef LAB_NMI_NOTRACE
        call plain
.endif
.ifdef LAB_NMI_MODS_CODE
        lock dec qword ptr [rip + nmi_running]
.endif
        mov qword ptr gs:[CPU_IN_NMI], 0
        pop rbp
        pop rbx
.ifdef LAB_NMI_REPEATS
        add rsp, 0x28
.endif
        iretq
END nmi

.ifdef LAB_NMI_MODS_CODE
# If code is being modified, this NMI does the same stores before it runs any of it.
ENTRY ftrace_nmi_enter
        push rdi
        push rsi
        push rdx
        push rcx
        lock inc qword ptr [rip + nmi_running]
        mov rcx, [rip + mod_code_write]
        test rcx, rcx
        jz .Lnot_modified
        mov rdi, [rip + mod_code_ip]
        lea rsi, [rip + mod_code_newcode]
        mov edx, 5
        call text_poke
.Lnot_modified:
        pop rcx
        pop rdx
        pop rsi
        pop rdi
        ret
END ftrace_nmi_enter

.data
nmi_running:
        .quad 0
mod_code_write:
        .quad 0
mod_code_ip:
        .quad 0
mod_code_newcode:
        .quad 0
.endif
