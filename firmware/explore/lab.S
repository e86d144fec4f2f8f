# The guest that patching protocols are explored with: a few functions with call sites, somebody who
# calls them, and what a site leads to. Small on purpose: every interleaving of it is run.
#
# Each task has its stack and each CPU its area and NMI stack in .data, so that one copy of .data is
# a snapshot. A task is started with  r12 = rounds,  r13, r14 = functions to call in each (r14 may be
# 0),  rbx = its result so far, which the functions fold into.

.include "linkage.inc"

.set LAB_PLACES, 9                      # CPUs, and tasks with the poker
.ifdef LAB_FOREIGN
.set LAB_STACK, 1536                    # compiled code takes more
.else
.set LAB_STACK, 512
.endif
.set LAB_ARGUMENTS, 6                   # of a call, in registers
.set LAB_TEXTS, 1024
.set LAB_CALL, 1                        # what an entry of the vector stands for
.set LAB_NOP, 2
.set LAB_VECTOR, 4
.set LAB_GUEST_DATA, 1024

.macro SAVE_ALL
        push rdi
        push rsi
        push rdx
        push rcx
        push rax
        push r8
        push r9
        push r10
        push r11
        push rbx
        push rbp
        push r12
        push r13
        push r14
        push r15
.endm

.macro RESTORE_ALL
        pop r15
        pop r14
        pop r13
        pop r12
        pop rbp
        pop rbx
        pop r11
        pop r10
        pop r9
        pop r8
        pop rax
        pop rcx
        pop rdx
        pop rsi
        pop rdi
.endm

# In a CPU's area, at GS.
.set CPU_EVENTS, 0x08                   # events written on this CPU
.set CPU_IN_NMI, 0x10
.set CPU_PREEMPT_COUNT, 0x18
.set CPU_SCRATCH, 0x20

# Never run: tasks are started by whoever explores.
ENTRY startup_64
        hlt
        jmp startup_64
END startup_64

ENTRY lab_task
.Lround:
.ifdef LAB_FOREIGN
        mov rdi, [r15]                  # the task's arguments
        mov rsi, [r15 + 8]
        mov rdx, [r15 + 16]
        mov rcx, [r15 + 24]
        mov r8, [r15 + 32]
        mov r9, [r15 + 40]
        call r13
        lea rbx, [rbx + rbx * 2]
        add rbx, rax
.else
        call r13
.endif
        test r14, r14
        jz .Lone
        call r14
.Lone:
        dec r12
        jnz .Lround
lab_task_done:
        hlt
        jmp lab_task_done
END lab_task

# --- what a site calls ---

# ftrace_caller: the function and its argument are loaded one after the other.
#   in  [rsp] = ip
ENTRY ftrace_caller
        push rdi
        push rsi
        push rax
        mov rdi, [rsp + 0x18]
        sub rdi, 5
        mov rax, [rip + ftrace_func]
        mov rsi, [rip + ftrace_arg]
        call rax
        pop rax
        pop rsi
        pop rdi
        ret
END ftrace_caller

# mcount, as the seed has it: one load of the pointer, then it is followed.
ENTRY mcount
        push rdi
        push rsi
        mov rdi, [rsp + 0x10]
        sub rdi, 5
        mov rsi, TRACER_A
        call qword ptr [rip + ftrace_func]
        pop rsi
        pop rdi
        ret
END mcount

ENTRY ftrace_stub
        ret
END ftrace_stub

# Functions with sites. LAB_PAD_* puts a site where a scenario wants it in its line or page.
.macro WORK name, factor
        .type \name, @function
\name:
        push rbp
        mov rbp, rsp
site_\name:
        call ftrace_caller
        lea rbx, [rbx + rbx * \factor + 1]
        pop rbp
        ret
        .size \name, . - \name
.endm

        .p2align 12, 0xcc
        LAB_PAD_WORK
WORK work, 2
        .p2align 6, 0xcc
WORK other, 4
        .p2align 6, 0xcc

# A function without a site.
ENTRY plain
        lea rbx, [rbx + rbx * 2 + 1]
        ret
END plain

# --- trampolines ---

# They go straight to one tracer.
.set TRACER_A, 1
.set TRACER_B, 2

.macro TRAMPOLINE name, tracer, argument
ENTRY \name
        push rdi
        push rsi
        mov rdi, [rsp + 0x10]
        sub rdi, 5
        mov esi, \argument
        call \tracer
        pop rsi
        pop rdi
        ret
END \name
.endm
        .p2align 6, 0xcc
TRAMPOLINE trampoline_a, tracer_a, TRACER_A
        .p2align 6, 0xcc
TRAMPOLINE trampoline_b, tracer_b, TRACER_B

# tracer(site rdi, argument rsi): an event a call.
ENTRY tracer_a
        inc qword ptr gs:[CPU_EVENTS]
        ret
END tracer_a

ENTRY tracer_b
        inc qword ptr gs:[CPU_EVENTS]
        ret
END tracer_b

# --- the shim: what a guest that patches by itself calls ---
#
# The machine does these (dynftrace_emu/explore/shim.py), step by step, when a CPU executes their first
# instruction; then they return.

# text_poke(address rdi, bytes rsi, count rdx): store to text, as through Linux's alias mapping.
ENTRY text_poke
        nop
        ret
END text_poke

# text_poke_sync(): on_each_cpu(do_sync_core, NULL, 1): every CPU syncs, and this one waits for all.
ENTRY text_poke_sync
        nop
        ret
END text_poke_sync

# free_text(address rdi, count rsi): nobody may execute or patch these bytes any more.
ENTRY free_text
        nop
        ret
END free_text

# mutex_lock(u64 *rdi), mutex_unlock(u64 *rdi)
ENTRY mutex_lock
        mov eax, 1
        xchg [rdi], rax
        test rax, rax
        jz .Llocked
        pause
        jmp mutex_lock
.Llocked:
        ret
END mutex_lock

ENTRY mutex_unlock
        mov qword ptr [rdi], 0
        ret
END mutex_unlock

# lab_poker: the patcher's CPU, where guest code patches:  r13(changes rdi, count rsi).
ENTRY lab_poker
        lea rdi, [rip + lab_changes]
        mov rsi, [rip + lab_nr_changes]
        call r13
        jmp lab_task_done
END lab_poker

# --- interrupts ---

# #BP, an interrupt gate. The frame is copied down five words, so that there is room to emulate a call
# on the interrupted stack (arch/x86/entry: create_gap).
ENTRY int3
.ifdef LAB_GUEST
        push qword ptr [rsp + 0x20]
        push qword ptr [rsp + 0x20]
        push qword ptr [rsp + 0x20]
        push qword ptr [rsp + 0x20]
        push qword ptr [rsp + 0x20]
        SAVE_ALL                        # struct pt_regs
        mov rdi, rsp
        call qword ptr [rip + lab_int3_handler]
        test eax, eax
        jz die_int3
        RESTORE_ALL
        iretq
.else
        push qword ptr [rsp + 0x20]
        push qword ptr [rsp + 0x20]
        push qword ptr [rsp + 0x20]
        push qword ptr [rsp + 0x20]
        push qword ptr [rsp + 0x20]
        push rax
        push rcx
        push rdx
        mov rax, [rsp + 0x18]
        dec rax
        mov [rsp + 0x18], rax           # the site
.ifdef LAB_NO_REFERENCES
        mov rcx, [rip + poke_count]
        test rcx, rcx
        jz .Lunclaimed
        mov rdx, [rip + poke_entries]   # it may be gone by now
.else
        mov rcx, [rip + poke_refs]      # atomic_inc_not_zero
.Lget:
        test rcx, rcx
        jz .Lunclaimed
        lea rdx, [rcx + 1]
        mov rax, rcx
        lock cmpxchg [rip + poke_refs], rdx
        mov rcx, rax
        jne .Lget
        mov rax, [rsp + 0x18]
        mov rcx, [rip + poke_count]
        mov rdx, [rip + poke_entries]
.endif
.Lfind:
        test rcx, rcx
        jz .Lput_unclaimed
        cmp [rdx], rax
        je .Lfound
        add rdx, 0x18
        dec rcx
        jmp .Lfind
.Lfound:
        add rax, 5
        mov rcx, [rdx + 8]
        cmp rcx, LAB_CALL
        jne .Lemulated                  # a nop: go on behind it
        mov rcx, [rsp + 0x30]           # push the return address, go to the target
        sub rcx, 8
        mov [rcx], rax
        mov [rsp + 0x30], rcx
        mov rax, [rdx + 0x10]
.Lemulated:
        mov [rsp + 0x18], rax
.ifndef LAB_NO_REFERENCES
        lock dec qword ptr [rip + poke_refs]
.endif
        pop rdx
        pop rcx
        pop rax
        iretq
.Lput_unclaimed:
.ifndef LAB_NO_REFERENCES
        lock dec qword ptr [rip + poke_refs]
.endif
.Lunclaimed:
.ifdef LAB_KPROBE
        jmp kprobe_int3
.endif
.endif
die_int3:
        hlt
        jmp die_int3
END int3

# The timer: does nothing, and comes at any time when interrupts are on.
ENTRY timer_interrupt
        push rbx
.ifdef LAB_TIMER_TRACES
        push rbp
        call work
        pop rbp
.endif
        pop rbx
        iretq
END timer_interrupt

.data
        .p2align 3
lab_idt:
        .skip 0x40 * 16
lab_data:

# Variants, with data of their own.
.include "explore/nmi.S"
.include "explore/kprobe.S"
.include "explore/records.S"
.include "explore/trampolines.S"
.include "explore/midcall.S"

.data
ftrace_func:
        .quad tracer_a
ftrace_arg:
        .quad TRACER_A
poke_refs:
        .quad 0
poke_count:
        .quad 0
poke_entries:
        .quad poke_vector
poke_vector:                            # site, what it stands for, target
        .skip LAB_VECTOR * 0x18
lab_nr_changes:
        .quad 0
lab_changes:                            # struct poke_change: site, old, new, kind of new, its target
        .skip LAB_VECTOR * 0x28
lab_int3_handler:
        .quad 0
lab_guest_data:                         # of guest code that was linked in
.ifdef LAB_GUEST
        .skip LAB_GUEST_DATA
.endif
        .p2align 4
lab_areas:
        .skip LAB_PLACES * 0x40
.ifdef LAB_FOREIGN
lab_arguments:
        .skip LAB_PLACES * LAB_ARGUMENTS * 8
lab_texts:
        .skip LAB_TEXTS
.endif
        .p2align 4
lab_stacks:                             # of a task, of a CPU's NMIs, of the next task, ...
        .skip LAB_PLACES * LAB_STACK * 2
lab_stacks_end:
