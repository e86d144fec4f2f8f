# pdflush: writes back inodes that are dirty. ramfs has nothing to write back; what there is to write
# are four inodes of a journalled file system that has no names, only numbers (iget). Only the task
# that calls late_work() comes here, so the lists need no lock.

.include "linkage.inc"
.include "percpu.inc"
.include "jbd.inc"

.set NR_META_INODES, 4
.set MAX_WRITEBACK_PAGES, 8
.percpu inodes_dirty, 8                 # struct inode *, linked through I_DIRTY_NEXT; oldest last
.percpu nr_dirty, 8
.percpu meta_inodes, 32                 # struct inode *, inode numbers 1 to 4
.percpu meta_heads, 32                  # struct journal_head *: the block that each inode lies in
.percpu meta_disk, 128                  # the disk: BLOCK_BYTES for each
.percpu writeback_rounds, 8

# writeback_init(): reads in the inodes, as it were.
FUNC writeback_init
        push rbx
        xor ebx, ebx
1:      mov rdi, rbx
        call meta_read_inode
        test rax, rax
        jz 2f
        inc rbx
        cmp rbx, NR_META_INODES
        jb 1b
        jmp 3f
2:      lea rdi, [rip + .Lno_inode]
        call panic
3:      pop rbx
        RETURN
END writeback_init
CPU_INITCALL writeback_init

# meta_read_inode(index): the inode and the head of its block; rax = the inode, or 0.
FUNC meta_read_inode
        push rbx
        push r12
        mov rbx, rdi
        mov edi, SIZEOF_JH
        call kmalloc
        mov r12, rax
        test rax, rax
        jz 1f
        mov rdi, rax
        xor esi, esi
        mov edx, SIZEOF_JH
        call memset
        mov [r12 + JH_BLOCKNR], rbx
        mov gs:[meta_heads + rbx*8], r12
        lea rdi, [rbx + 1]
        call iget
        mov gs:[meta_inodes + rbx*8], rax
1:      pop r12
        pop rbx
        RETURN
END meta_read_inode

# submit_bh(blocknr, data): a block goes to disk.
FUNC submit_bh
        mov rcx, gs:[PCPU_SELF]
        imul rdi, rdi, BLOCK_BYTES
        lea rdi, [rcx + rdi + meta_disk]
        mov edx, BLOCK_BYTES
        call memcpy
        RETURN
END submit_bh

# __mark_inode_dirty(inode)
FUNC __mark_inode_dirty
        test dword ptr [rdi + I_STATE], I_DIRTY
        jnz 1f
        or qword ptr [rdi + I_STATE], I_DIRTY
        mov rcx, gs:[inodes_dirty]
        mov [rdi + I_DIRTY_NEXT], rcx
        mov gs:[inodes_dirty], rdi
        inc qword ptr gs:[nr_dirty]
1:      RETURN
END __mark_inode_dirty

# do_update_inode(inode, jh): the inode as it lies on disk.
FUNC do_update_inode
        mov rax, [rdi + I_INO]
        mov [rsi + JH_DATA], rax
        mov rax, [rdi + I_SIZE]
        mov [rsi + JH_DATA + 8], rax
        mov rax, [rdi + I_NLINK]
        mov [rsi + JH_DATA + 16], rax
        inc qword ptr [rsi + JH_DATA + 24]      # generation
        RETURN
END do_update_inode

# write_inode(inode): through the journal; 0 or an error.
FUNC write_inode
        push rbx
        push r12
        push r13
        mov rbx, rdi
        mov edi, 1
        call journal_start
        JUMP_IF_ERR rax, 2f
        mov r12, rax
        mov rcx, [rbx + I_INO]
        mov r13, gs:[meta_heads + rcx*8 - 8]
        mov rdi, r12
        mov rsi, r13
        call journal_get_write_access
        test rax, rax
        jnz 1f
        mov rdi, rbx
        mov rsi, r13
        call do_update_inode
        mov rdi, r12
        mov rsi, r13
        call journal_dirty_metadata
        xor eax, eax
1:      mov rbx, rax
        mov rdi, r12
        call journal_stop
        mov rax, rbx
2:      pop r13
        pop r12
        pop rbx
        RETURN
END write_inode

# __sync_single_inode(inode): clean first, lest a change that comes meanwhile be lost; 0 or an error.
FUNC __sync_single_inode
        push rbx
        mov rbx, rdi
        and qword ptr [rbx + I_STATE], ~I_DIRTY
        call write_inode
        test rax, rax
        jz 1f
        mov rdi, rbx
        call redirty_inode
1:      pop rbx
        RETURN
END __sync_single_inode

# redirty_inode(inode): it could not be written; the next round tries again. Keeps rax.
FUNC redirty_inode
        push rax
        call __mark_inode_dirty
        pop rax
        RETURN
END redirty_inode

# __writeback_single_inode(inode): with a reference for as long as it takes; 0 or an error.
FUNC __writeback_single_inode
        push rbx
        push r12
        mov rbx, rdi
        call __iget
        mov rdi, rbx
        call __sync_single_inode
        mov r12, rax
        mov rdi, rbx
        call iput
        mov rax, r12
        pop r12
        pop rbx
        RETURN
END __writeback_single_inode

# pop_dirty_inode(): rax = a dirty inode, off the list, or 0.
FUNC pop_dirty_inode
        mov rcx, gs:[inodes_dirty]
        test rcx, rcx
        jz 1f
        mov rdx, [rcx + I_DIRTY_NEXT]
        mov gs:[inodes_dirty], rdx
        mov qword ptr [rcx + I_DIRTY_NEXT], 0
        dec qword ptr gs:[nr_dirty]
1:      mov rax, rcx
        RETURN
END pop_dirty_inode

# sync_sb_inodes(nr_to_write): rax = how many were written; stops at an error.
FUNC sync_sb_inodes
        push rbx
        push r12
        mov r12, rdi
        xor ebx, ebx
1:      cmp rbx, r12
        jae 2f
        call pop_dirty_inode
        test rax, rax
        jz 2f
        mov rdi, rax
        call __writeback_single_inode
        test rax, rax
        jnz 2f
        inc rbx
        jmp 1b
2:      mov rax, rbx
        pop r12
        pop rbx
        RETURN
END sync_sb_inodes

# writeback_inodes(nr_to_write): rax = how many were written. There is one super block.
FUNC writeback_inodes
        call sync_sb_inodes
        RETURN
END writeback_inodes

# wb_kupdate(): pdflush's periodic work.
FUNC wb_kupdate
        inc qword ptr gs:[writeback_rounds]
        mov edi, MAX_WRITEBACK_PAGES
        call writeback_inodes
        RETURN
END wb_kupdate

# background_writeout(): until nothing is dirty, or it cannot be written.
FUNC background_writeout
1:      cmp qword ptr gs:[nr_dirty], 0
        je 2f
        mov edi, MAX_WRITEBACK_PAGES
        call writeback_inodes
        test rax, rax
        jnz 1b
2:      RETURN
END background_writeout

# pdflush_operation(fn): here the caller is the thread.
FUNC pdflush_operation
        call rdi
        RETURN
END pdflush_operation

.section .rodata
.Lno_inode: .asciz "writeback: no memory for the inodes"
