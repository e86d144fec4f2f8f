# The slow half of writing into a ring buffer (kernel/trace/ring_buffer.c): the next page, and times
# far apart. Each CPU writes its own buffers alone; the host reads meanwhile.
#
# What the reader relies on, all by stores of 8 bytes in this order: page_no moves on before the page
# that lies in the place of an older one is touched; rb_page.number says when its header holds; what
# the write word has is whole, or, while that is open, what commit covers. So it copies a page, looks at
# page_no again, and knows what it has.

.include "linkage.inc"
.include "percpu.inc"
.include "trace/trace.inc"

# \to = the struct rb_page of a page of ring buffer r11.
.macro RB_PAGE_OF to, page
        mov \to, \page
        sub \to, [r11 + RB_BASE]
        shr \to, 8                      # PAGE_SIZE / RB_PAGE_SIZE
        add \to, [r11 + RB_TABLE]
.endm

# ring_buffer_make_room(buffer r11, page rcx, its write word r8, bytes wanted rdx): see to it that
# another try may succeed. Carry: it cannot, and the event is counted as dropped.
# Clobbers rax, rcx, rdx, rsi, r8 and r9.
ENTRY ring_buffer_make_room
        mov esi, r8d
        and esi, WRITE_PLACE
        lea r9d, [rdx + rsi * 4]
        cmp r9d, BUFFER_PAGE_SPACE
        ja ring_buffer_next_page
        mov r9d, esi
        TRACE_CLOCK
        shl rax, WRITE_TIME_SHIFT
        mov rdx, r8
        shr rdx, WRITE_TIME_SHIFT
        shl rdx, WRITE_TIME_SHIFT
        sub rax, rdx
        mov rsi, rax
        sar rsi, WRITE_TIME_SHIFT + 30
        cmp rsi, -1                     # a little behind: the TSC of another core was ahead, and ours
        je .Lroom                       # will get there
        mov rsi, rax
        shr rsi, WRITE_TIME_SHIFT + DELTA_BITS
        jz .Lroom                       # an interrupt has seen to it
        cmp r9d, (BUFFER_PAGE_SPACE - TIME_EXTEND_EVENT) / 4
        ja ring_buffer_next_page
        mov edx, r9d
        RING_BUFFER_TAKE TIME_EXTEND_EVENT / 4, .Lroom
        mov eax, esi                    # the low 27 bits of the delta
        or eax, TIME_EXTEND
        mov [rdx], eax
        shr rsi, 5 + DELTA_BITS
        mov [rdx + 4], esi
        RING_BUFFER_COMMIT
.Lroom:
        clc
        ret
END ring_buffer_make_room

# ring_buffer_next_page(buffer r11, page rcx): likewise. Interrupts are off meanwhile; an event out of
# an NMI that comes here is dropped.
ENTRY ring_buffer_next_page
        pushfq
        cli
        cmp qword ptr [r11 + RB_BUSY], 0
        jne .Lpage_dropped
        mov qword ptr [r11 + RB_BUSY], 1
        cmp rcx, [r11 + RB_PAGE]
        jne .Lpage_made                 # an interrupt or an NMI has done it
        mov r8, [r11 + RB_PAGE_NO]
        inc r8
        cmp qword ptr [r11 + RB_OVERWRITE], 0
        jne 2f
        mov rdx, r8                     # the page that lies there now: has the reader left it?
        sub rdx, [r11 + RB_NR_PAGES]
        cmp rdx, [r11 + RB_READER_PAGE]
        jge .Lfull
2:
        or qword ptr [rcx + PAGE_WRITE], WRITE_CLOSED
        TRACE_CLOCK                     # behind every event of the page that is closed now
        mov rsi, [rcx + PAGE_WRITE]
        shr rsi, WRITE_COUNT_SHIFT
        and esi, WRITE_COUNT_MASK
        RB_PAGE_OF rdx, rcx
        add rsi, [rdx + RB_PAGE_FIRST]  # the number of the next page's first event
        mov [r11 + RB_PAGE_NO], r8
        add rcx, PAGE_SIZE
        cmp rcx, [r11 + RB_END]
        jb 3f
        mov rcx, [r11 + RB_BASE]
3:
        mov [rcx + BUFFER_PAGE_TIME_STAMP], rax
        shl rax, WRITE_TIME_SHIFT
        mov [rcx + PAGE_WRITE], rax
        mov qword ptr [rcx + BUFFER_PAGE_COMMIT], 0
        RB_PAGE_OF rdx, rcx
        mov [rdx + RB_PAGE_FIRST], rsi
        mov [rdx + RB_PAGE_NUMBER], r8
        mov [r11 + RB_PAGE], rcx
.Lpage_made:
        mov qword ptr [r11 + RB_BUSY], 0
        popfq
        clc
        ret
.Lfull:
        mov qword ptr [r11 + RB_BUSY], 0
.Lpage_dropped:
        inc qword ptr [r11 + RB_DROPPED]
        popfq
        stc
        ret
END ring_buffer_next_page
