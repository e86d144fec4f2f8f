# The slow half of writing into a ring buffer (kernel/trace/ring_buffer.c): the next page, and times
# far apart. Each CPU writes its own buffers alone, with interrupts off; the host reads meanwhile.
#
# What the reader relies on, all by stores of 8 bytes in this order: page_no moves on before the page
# that lies in the place of an older one is touched; rb_page.number says when its header holds; commit
# grows when an event is whole. So it copies a page, looks at page_no again, and knows what it has.

.include "linkage.inc"
.include "percpu.inc"
.include "trace/trace.inc"

.set TIME_EXTEND, 30                    # type_len
.set TIME_EXTEND_SIZE, 8

# ring_buffer_reserve_slow(buffer r11, time rax, event's size rdx)
#   in    rcx = the page, r8 = its commit
#   out   rcx, r8 = where the event goes, rdx = its delta; rax = its time; or carry: it is dropped
# Clobbers rsi and r9.
ENTRY ring_buffer_reserve_slow
        mov r9, rdx
        cmp rax, [r11 + RB_WRITE_STAMP]
        jae 1f
        mov rax, [r11 + RB_WRITE_STAMP] # the TSC of another core may be behind: time stands still
1:
        lea rdx, [r8 + r9]
        cmp rdx, BUFFER_PAGE_SPACE
        ja .Lnext_page
        test r8, r8
        jz .Lfirst
        mov rdx, rax
        sub rdx, [r11 + RB_WRITE_STAMP]
        cmp rdx, MAX_DELTA
        jb .Lroom                       # it was time that went back
        lea rsi, [r8 + r9 + TIME_EXTEND_SIZE]
        cmp rsi, BUFFER_PAGE_SPACE
        ja .Lnext_page
        mov r9d, edx
        and r9d, MAX_DELTA - 1
        shl r9d, 5
        or r9d, TIME_EXTEND
        mov [rcx + r8 + BUFFER_PAGE_SIZE], r9d
        shr rdx, 27
        mov [rcx + r8 + BUFFER_PAGE_SIZE + 4], edx
        add r8, TIME_EXTEND_SIZE
        xor edx, edx
.Lroom:
        clc
        ret

# The first event of an empty page.
.Lfirst:
        mov [rcx + BUFFER_PAGE_TIME_STAMP], rax
        xor edx, edx
        clc
        ret

.Lnext_page:
        mov r8, [r11 + RB_PAGE_NO]
        inc r8
        cmp qword ptr [r11 + RB_OVERWRITE], 0
        jne 2f
        mov rdx, r8                     # the page that lies there now: has the reader left it?
        sub rdx, [r11 + RB_NR_PAGES]
        cmp rdx, [r11 + RB_READER_PAGE]
        jge .Lfull
2:
        mov [r11 + RB_PAGE_NO], r8
        add rcx, PAGE_SIZE
        cmp rcx, [r11 + RB_END]
        jb 3f
        mov rcx, [r11 + RB_BASE]
3:
        mov [rcx + BUFFER_PAGE_TIME_STAMP], rax
        mov qword ptr [rcx + BUFFER_PAGE_COMMIT], 0
        mov rdx, rcx
        sub rdx, [r11 + RB_BASE]
        shr rdx, 8                      # PAGE_SIZE / RB_PAGE_SIZE
        add rdx, [r11 + RB_TABLE]
        mov r9, [r11 + RB_ENTRIES]
        mov [rdx + RB_PAGE_FIRST], r9
        mov [rdx + RB_PAGE_NUMBER], r8
        mov [r11 + RB_PAGE], rcx
        xor r8d, r8d
        xor edx, edx
        clc
        ret
.Lfull:
        inc qword ptr [r11 + RB_DROPPED]
        stc
        ret
END ring_buffer_reserve_slow
