# jbd: changes of metadata go to the log as transactions first. Only this CPU's writeback uses its
# journal; it is no part of what the tasks compute.

.include "linkage.inc"
.include "percpu.inc"
.include "jbd.inc"

.percpu journal, 48                     # journal_t

# journal_init(): an empty journal for this CPU.
FUNC journal_init
        call alloc_page
        test rax, rax
        jnz 1f
        lea rdi, [rip + .Lno_journal]
        call panic
1:      mov rcx, rax
        mov gs:[journal + J_LOG], rcx
        mov qword ptr gs:[journal + J_RUNNING], 0
        mov qword ptr gs:[journal + J_TRANSACTION_SEQUENCE], 1
        mov qword ptr gs:[journal + J_COMMIT_SEQUENCE], 0
        mov qword ptr gs:[journal + J_HEAD], 0
        mov qword ptr gs:[journal + J_TAIL], 0
        RETURN
END journal_init
CPU_INITCALL journal_init

# get_transaction(): rax = a new running transaction, or 0.
FUNC get_transaction
        push rbx
        mov edi, SIZEOF_TRANSACTION
        call kmalloc
        test rax, rax
        jz 1f
        mov rbx, rax
        mov rdi, rax
        xor esi, esi
        mov edx, SIZEOF_TRANSACTION
        call memset
        mov rcx, gs:[journal + J_TRANSACTION_SEQUENCE]
        inc qword ptr gs:[journal + J_TRANSACTION_SEQUENCE]
        mov [rbx + T_TID], rcx
        mov gs:[journal + J_RUNNING], rbx
        mov rax, rbx
1:      pop rbx
        RETURN
END get_transaction

# start_this_handle(handle): joins the running transaction, or begins one; 0 or -ENOMEM.
FUNC start_this_handle
        push rbx
        mov rbx, rdi
        mov rcx, gs:[journal + J_RUNNING]
        test rcx, rcx
        jnz 1f
        call get_transaction
        mov rcx, rax
        test rax, rax
        mov rax, E_NOMEM
        jz 2f
1:      mov [rbx + H_TRANSACTION], rcx
        inc qword ptr [rcx + T_UPDATES]
        xor eax, eax
2:      pop rbx
        RETURN
END start_this_handle

# journal_start(nblocks): rax = a handle that may dirty so many blocks, or an error.
FUNC journal_start
        push rbx
        push r12
        mov r12, rdi
        mov edi, SIZEOF_HANDLE
        call kmalloc
        mov rbx, rax
        test rax, rax
        mov rax, E_NOMEM
        jz 1f
        mov [rbx + H_CREDITS], r12
        mov rdi, rbx
        call start_this_handle
        test rax, rax
        cmovz rax, rbx
        jz 1f
        mov r12, rax
        mov rdi, rbx
        call kfree
        mov rax, r12
1:      pop r12
        pop rbx
        RETURN
END journal_start

# journal_stop(handle): its updates are complete; they are committed with the whole transaction.
FUNC journal_stop
        mov rcx, [rdi + H_TRANSACTION]
        dec qword ptr [rcx + T_UPDATES]
        call kfree
        RETURN
END journal_stop

# __journal_file_buffer(jh, transaction): jh belongs to that transaction now.
FUNC __journal_file_buffer
        mov [rdi + JH_TRANSACTION], rsi
        mov rcx, [rsi + T_BUFFERS]
        mov [rdi + JH_NEXT], rcx
        mov [rsi + T_BUFFERS], rdi
        inc qword ptr [rsi + T_NR_BUFFERS]
        RETURN
END __journal_file_buffer

# __journal_unfile_buffer(jh): takes the first buffer off its transaction.
FUNC __journal_unfile_buffer
        mov rsi, [rdi + JH_TRANSACTION]
        mov rcx, [rdi + JH_NEXT]
        mov [rsi + T_BUFFERS], rcx
        dec qword ptr [rsi + T_NR_BUFFERS]
        mov qword ptr [rdi + JH_TRANSACTION], 0
        mov qword ptr [rdi + JH_DIRTY], 0
        RETURN
END __journal_unfile_buffer

# journal_get_write_access(handle, jh): before a change; 0, or -ENOSPC if the handle has no credits.
FUNC journal_get_write_access
        xor eax, eax
        mov rcx, [rdi + H_TRANSACTION]
        cmp [rsi + JH_TRANSACTION], rcx
        je 1f                           # filed there by an earlier handle
        mov rax, E_NOSPC
        cmp qword ptr [rdi + H_CREDITS], 0
        je 1f
        dec qword ptr [rdi + H_CREDITS]
        mov rdi, rsi
        mov rsi, rcx
        call __journal_file_buffer
        xor eax, eax
1:      RETURN
END journal_get_write_access

# journal_dirty_metadata(handle, jh): after a change.
FUNC journal_dirty_metadata
        mov qword ptr [rsi + JH_DIRTY], 1
        RETURN
END journal_dirty_metadata

# __log_space_left(): rax = blocks of the log that can be written over.
FUNC __log_space_left
        mov rcx, gs:[journal + J_HEAD]
        sub rcx, gs:[journal + J_TAIL]
        mov eax, JBD_LOG_BLOCKS
        sub rax, rcx
        RETURN
END __log_space_left

# log_block(position): rax = where the log's block of that running number lies.
FUNC log_block
        mov rcx, gs:[journal + J_LOG]
        and edi, JBD_LOG_BLOCKS - 1
        shl edi, JBD_LOG_SHIFT
        lea rax, [rcx + rdi]
        RETURN
END log_block

# journal_next_log_block(type, tid): rax = the next block of the log, its header filled in.
FUNC journal_next_log_block
        push rbx
        push r12
        mov rbx, rdi
        mov r12, rsi
        mov rdi, gs:[journal + J_HEAD]
        inc qword ptr gs:[journal + J_HEAD]
        call log_block
        mov dword ptr [rax + LOG_MAGIC], JFS_MAGIC_NUMBER
        mov [rax + LOG_BLOCKTYPE], ebx
        mov [rax + LOG_TID], r12
        pop r12
        pop rbx
        RETURN
END journal_next_log_block

# journal_write_metadata_buffer(transaction, jh): one block to the log, and into its checksum.
FUNC journal_write_metadata_buffer
        push rbx
        push r12
        mov rbx, rdi
        mov r12, rsi
        mov edi, JFS_METADATA_BLOCK
        mov rsi, [rbx + T_TID]
        call journal_next_log_block
        mov rcx, [r12 + JH_BLOCKNR]
        mov [rax + LOG_BLOCKNR], rcx
        mov qword ptr [rax + LOG_CHECKSUM], 0
        lea rdi, [rax + LOG_DATA]
        lea rsi, [r12 + JH_DATA]
        mov edx, BLOCK_BYTES
        call memcpy
        mov rdi, [rbx + T_CHECKSUM]
        lea rsi, [r12 + JH_DATA]
        mov edx, BLOCK_BYTES
        call crc32_le
        mov eax, eax
        mov [rbx + T_CHECKSUM], rax
        pop r12
        pop rbx
        RETURN
END journal_write_metadata_buffer

# journal_write_commit_record(transaction, blocks): with it on disk the transaction has happened.
FUNC journal_write_commit_record
        push rbx
        push r12
        mov rbx, rdi
        mov r12, rsi
        mov edi, JFS_COMMIT_BLOCK
        mov rsi, [rbx + T_TID]
        call journal_next_log_block
        mov [rax + LOG_BLOCKNR], r12
        mov rcx, [rbx + T_CHECKSUM]
        mov [rax + LOG_CHECKSUM], rcx
        pop r12
        pop rbx
        RETURN
END journal_write_commit_record

# __journal_drop_transaction(transaction): it is committed and empty.
FUNC __journal_drop_transaction
        call kfree
        RETURN
END __journal_drop_transaction

# journal_commit_transaction(): writes the running transaction, if there is one, to the log. No handle
# is open. rax = metadata blocks written.
FUNC journal_commit_transaction
        push rbx
        push r12
        push r13
        xor r13d, r13d
        mov rbx, gs:[journal + J_RUNNING]
        test rbx, rbx
        jz 4f
        mov qword ptr gs:[journal + J_RUNNING], 0
1:      mov r12, [rbx + T_BUFFERS]
        test r12, r12
        jz 3f
        cmp qword ptr [r12 + JH_DIRTY], 0
        je 2f                           # access was asked for, nothing changed
        mov rdi, rbx
        mov rsi, r12
        call journal_write_metadata_buffer
        inc r13
2:      mov rdi, r12
        call __journal_unfile_buffer
        jmp 1b
3:      mov rdi, rbx
        mov rsi, r13
        call journal_write_commit_record
        mov rcx, [rbx + T_TID]
        mov gs:[journal + J_COMMIT_SEQUENCE], rcx
        mov rdi, rbx
        call __journal_drop_transaction
4:      mov rax, r13
        pop r13
        pop r12
        pop rbx
        RETURN
END journal_commit_transaction

# cleanup_journal_tail(position): what lies before it is on disk: the log may use it again.
FUNC cleanup_journal_tail
        mov gs:[journal + J_TAIL], rdi
        RETURN
END cleanup_journal_tail

# log_do_checkpoint(): brings what was committed to its place on disk; rax = blocks that took.
FUNC log_do_checkpoint
        push rbx
        push r12
        push r13
        xor r13d, r13d
        mov rbx, gs:[journal + J_TAIL]
1:      cmp rbx, gs:[journal + J_HEAD]
        jae 3f
        mov rdi, rbx
        call log_block
        mov r12, rax
        cmp dword ptr [r12 + LOG_BLOCKTYPE], JFS_METADATA_BLOCK
        jne 2f
        mov rdi, [r12 + LOG_BLOCKNR]
        lea rsi, [r12 + LOG_DATA]
        call submit_bh
        inc r13
2:      inc rbx
        jmp 1b
3:      mov rdi, rbx
        call cleanup_journal_tail
        mov rax, r13
        pop r13
        pop r12
        pop rbx
        RETURN
END log_do_checkpoint

# kjournald(): one round of the commit thread's work.
FUNC kjournald
        call journal_commit_transaction
        call __log_space_left
        cmp rax, JBD_MIN_SPACE
        jae 1f
        call log_do_checkpoint
1:      RETURN
END kjournald

.section .rodata
.Lno_journal: .asciz "JBD: no memory for the journal"
