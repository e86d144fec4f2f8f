# The recorder of 2008, as small as can be: a table of sites that grows.
#
#   LAB_RECORDS             there is one
#   LAB_FAILED_FORGOTTEN    a record that has failed does not count as known
#   LAB_RELEASE             who frees text releases its records first (ftrace_release)

.ifdef LAB_RECORDS
.set RECORD_SITE, 0
.set RECORD_STATE, 8
.set RECORD_SIZE, 0x10
.set RECORD_FAILED, 2
.set LAB_RECORDS_MAX, 6

.text
# ftrace_record_ip(site rdi): what mcount leads to while recording. Keeps all registers.
ENTRY ftrace_record_ip
        push rax
        push rcx
        push rdx
        push rdi
        pushfq
        cli
        lea rdi, [rip + ftrace_record_lock]
        call mutex_lock
        mov rdi, [rsp + 8]
        mov rcx, [rip + ftrace_record_count]
        lea rdx, [rip + ftrace_records]
.Lrecord_find:
        test rcx, rcx
        jz .Lrecord_new
        cmp [rdx + RECORD_SITE], rdi
        jne .Lrecord_next
.ifdef LAB_FAILED_FORGOTTEN
        mov rax, [rdx + RECORD_STATE]
        cmp rax, RECORD_FAILED
        je .Lrecord_next
.endif
        jmp .Lrecord_out
.Lrecord_next:
        add rdx, RECORD_SIZE
        dec rcx
        jmp .Lrecord_find
.Lrecord_new:
        mov rcx, [rip + ftrace_record_count]
        cmp rcx, LAB_RECORDS_MAX
        jae .Lrecord_out
        mov ax, [rdi]                   # patched meanwhile: it was under way to here
        cmp ax, 0x03eb
        je .Lrecord_out
        mov [rdx + RECORD_SITE], rdi
        inc rcx
        mov [rip + ftrace_record_count], rcx
.Lrecord_out:
        lea rdi, [rip + ftrace_record_lock]
        call mutex_unlock
        popfq
        pop rdi
        pop rdx
        pop rcx
        pop rax
        ret
END ftrace_record_ip

# Another name for mcount, as a linker's thunk: a call of it is not the call that the daemon expects.
ENTRY mcount_thunk
        jmp mcount
END mcount_thunk

# Unload the module that other is all of.
ENTRY rmmod
.ifdef LAB_RELEASE
        lea rdi, [rip + site_other]
        mov rcx, [rip + ftrace_record_count]
        lea rdx, [rip + ftrace_records]
.Lrelease:
        test rcx, rcx
        jz .Lreleased
        cmp [rdx + RECORD_SITE], rdi
        jne .Lrelease_next
        mov qword ptr [rdx + RECORD_SITE], 0
.Lrelease_next:
        add rdx, RECORD_SIZE
        dec rcx
        jmp .Lrelease
.Lreleased:
.endif
        lea rdi, [rip + other]
        mov esi, 0x40
        call free_text
        ret
END rmmod

.data
ftrace_record_lock:
        .quad 0
ftrace_record_count:
        .quad 0
ftrace_records:                         # site, state: 0 new, 1 converted, 2 failed
        .skip LAB_RECORDS_MAX * RECORD_SIZE
.endif
