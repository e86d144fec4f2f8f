# The second wave: code that runs for the first time when the workload has gone on for a while.

.include "linkage.inc"
.include "percpu.inc"
.include "fs.inc"

.set LATE_INODES, 4
.percpu late_rounds, 8

# touch_inode(index): something has changed a metadata inode.
FUNC touch_inode
        and edi, LATE_INODES - 1
        mov rdi, gs:[meta_inodes + rdi*8]
        mov rax, gs:[late_rounds]
        lea rax, [rax + rax*4 + 64]
        add [rdi + I_SIZE], rax
        call __mark_inode_dirty
        RETURN
END touch_inode

# late_work(): one round of writeback and of power management, on this CPU's own data: no task's
# result depends on it. Once an iteration, by the CPU's main task, preemptible.
FUNC late_work
        push rbx
        inc qword ptr gs:[late_rounds]
        mov rbx, gs:[late_rounds]
        mov rdi, rbx
        call touch_inode
        lea rdi, [rbx + rbx*2 + 1]
        call touch_inode
        lea rdi, [rip + wb_kupdate]
        call pdflush_operation
        call kjournald
        call dpm_cycle
        pop rbx
        RETURN
END late_work
