# Workers that live in fs/ and drivers/. Each has name_setup(task), once, and name_step(task), run by
# the task itself: one step of work on its own data. What a step folds into the task's checksum
# depends on the task's own random numbers alone (the pipe's reader: on its writer's).

.include "linkage.inc"
.include "percpu.inc"
.include "fs.inc"

# struct fs_worker
.set FSW_STEP, 0                # steps done
.set FSW_FD, 8
.set FSW_PATH, 16               # "/t<pid>/<letter>"
.set FSW_LETTER, 23             # the letter in it
.set FSW_OUT, 32                # what it writes
.set FSW_OUT_BYTES, 32
.set FSW_IN, 64                 # what it reads
.set FSW_IN_BYTES, 48
.set SIZEOF_FSW, 112

.set FS_FILES, 4
.set FS_FILE_SPAN, 0x1ff        # positions it writes at

# struct driver_worker
.set DSW_STEP, 0
.set DSW_FD, 8
.set DSW_OUT, 16
.set DSW_IN, 48
.set DSW_BYTES, 32
.set SIZEOF_DSW, 80

.set NR_DEV_PATHS, 7

# struct pipe_worker
.set PW_FD, 0                   # -1 until its first step
.set PW_BUF, 8
.set PW_CHUNK, 48
.set PW_CRC, 56
.set SIZEOF_PW, 64

.set PW_CHUNKS, 3               # a step moves more than a pipe holds: both sides sleep

.percpu pipe_ends, 16           # this CPU's pipe: the files for reader and writer to come

# worker_alloc(task, bytes): zeroed state for the task, in TASK_DATA; rax = it. Panics without memory.
FUNC worker_alloc
        push rbx
        push r12
        mov rbx, rdi
        mov r12, rsi
        mov rdi, rsi
        call kmalloc
        test rax, rax
        jnz 1f
        lea rdi, [rip + .Lno_worker]
        call panic
1:      mov [rbx + TASK_DATA], rax
        mov rdi, rax
        xor esi, esi
        mov rdx, r12
        call memset
        mov rax, [rbx + TASK_DATA]
        pop r12
        pop rbx
        RETURN
END worker_alloc

# worker_fill(task, buf, bytes): random bytes of the task's own; bytes is a multiple of 8.
FUNC worker_fill
        push rbx
        push r12
        push r13
        mov rbx, rdi
        mov r12, rsi
        lea r13, [rsi + rdx]
1:      lea rdi, [rbx + TASK_RNG]
        call prandom_u64
        mov [r12], rax
        add r12, 8
        cmp r12, r13
        jb 1b
        pop r13
        pop r12
        pop rbx
        RETURN
END worker_fill

# fold_crc(task, buf, bytes)
FUNC fold_crc
        push rbx
        mov rbx, rdi
        mov edi, 0xffffffff
        call crc32_le
        mov esi, eax
        mov rdi, rbx
        call checksum_fold
        pop rbx
        RETURN
END fold_crc

# put_hex4(buf, value): four digits.
FUNC put_hex4
        mov ecx, 12
1:      mov eax, esi
        shr eax, cl
        and eax, 15
        cmp eax, 10
        jb 2f
        add eax, 39                     # 'a' - '0' - 10
2:      add eax, 48
        mov [rdi], al
        inc rdi
        sub ecx, 4
        jns 1b
        RETURN
END put_hex4

# fs_setup(task)
FUNC fs_setup
        push rbx
        push r12
        mov rbx, rdi
        mov esi, SIZEOF_FSW
        call worker_alloc
        mov r12, rax
        mov word ptr [r12 + FSW_PATH], 0x742f   # "/t"
        lea rdi, [r12 + FSW_PATH + 2]
        mov rsi, [rbx + TASK_PID]
        call put_hex4
        pop r12
        pop rbx
        RETURN
END fs_setup

# fs_open_file(worker): opens this step's file as the step's turn says; rax = descriptor.
FUNC fs_open_file
        push rbx
        mov rbx, rdi
        mov ecx, [rbx + FSW_STEP]
        test ecx, ecx
        jnz 1f
        lea rdi, [rbx + FSW_PATH]       # a directory of its own comes first
        mov esi, 0x1ff
        call sys_mkdir
        mov byte ptr [rbx + FSW_LETTER - 1], '/'
        mov ecx, [rbx + FSW_STEP]
1:      mov eax, ecx
        and eax, FS_FILES - 1
        add eax, 'a'
        mov [rbx + FSW_LETTER], al
        shr ecx, 2
        and ecx, 3
        lea rax, [rip + fs_open_flags]
        mov rsi, [rax + rcx*8]
        lea rdi, [rbx + FSW_PATH]
        mov edx, 0x1b6
        call sys_open
        mov [rbx + FSW_FD], rax
        pop rbx
        RETURN
END fs_open_file

# fs_exchange(task, worker): writes somewhere in the open file, reads from half way there.
FUNC fs_exchange
        push rbx
        push r12
        push r13
        mov rbx, rdi
        mov r12, rsi
        mov r13d, [r12 + FSW_OUT]
        and r13d, FS_FILE_SPAN
        mov rdi, [r12 + FSW_FD]
        mov rsi, r13
        mov edx, SEEK_SET
        call sys_lseek
        mov rdi, [r12 + FSW_FD]
        lea rsi, [r12 + FSW_OUT]
        mov edx, FSW_OUT_BYTES
        call sys_write
        mov rdi, rbx
        mov rsi, rax
        call checksum_fold
        mov rdi, [r12 + FSW_FD]
        mov rsi, r13
        shr rsi, 1
        mov edx, SEEK_SET
        call sys_lseek
        mov rdi, [r12 + FSW_FD]
        lea rsi, [r12 + FSW_IN]
        mov edx, FSW_IN_BYTES
        call sys_read
        mov r13, rax
        mov rdi, rbx
        mov rsi, rax
        call checksum_fold
        mov rdi, rbx
        lea rsi, [r12 + FSW_IN]
        mov rdx, r13
        call fold_crc
        pop r13
        pop r12
        pop rbx
        RETURN
END fs_exchange

# fs_step(task): open, write, read, close. Of every 16 steps the last four also unlink, one file each.
FUNC fs_step
        push rbx
        push r12
        mov rbx, rdi
        mov r12, [rdi + TASK_DATA]
        lea rsi, [r12 + FSW_OUT]
        mov edx, FSW_OUT_BYTES
        call worker_fill
        mov rdi, r12
        call fs_open_file
        mov rdi, rbx
        mov rsi, rax
        call checksum_fold
        mov rdi, rbx
        mov rsi, r12
        call fs_exchange
        mov rdi, [r12 + FSW_FD]
        call sys_close
        mov ecx, [r12 + FSW_STEP]
        inc qword ptr [r12 + FSW_STEP]
        and ecx, 12
        cmp ecx, 12
        jne 1f
        lea rdi, [r12 + FSW_PATH]
        call sys_unlink
1:      mov rdi, rbx
        mov rsi, rax
        call checksum_fold
        pop r12
        pop rbx
        RETURN
END fs_step

# driver_setup(task)
FUNC driver_setup
        mov esi, SIZEOF_DSW
        call worker_alloc
        RETURN
END driver_setup

# driver_exchange(task, worker): writes, asks, reads; what the device gave back is folded.
FUNC driver_exchange
        push rbx
        push r12
        mov rbx, rdi
        mov r12, rsi
        mov rdi, [r12 + DSW_FD]
        lea rsi, [r12 + DSW_OUT]
        mov edx, DSW_BYTES
        call sys_write
        mov rdi, rbx
        mov rsi, rax
        call checksum_fold
        mov rdi, [r12 + DSW_FD]
        mov esi, POLLIN | POLLOUT
        call sys_poll
        mov rdi, rbx
        mov rsi, rax
        call checksum_fold
        mov rdi, [r12 + DSW_FD]
        xor esi, esi
        mov edx, SEEK_SET
        call sys_lseek                  # where the device has a position
        mov rdi, [r12 + DSW_FD]
        lea rsi, [r12 + DSW_IN]
        mov edx, DSW_BYTES
        call sys_read
        mov rdi, rbx
        mov rsi, rax
        call checksum_fold
        mov rdi, rbx
        lea rsi, [r12 + DSW_IN]
        mov edx, DSW_BYTES
        call fold_crc
        pop r12
        pop rbx
        RETURN
END driver_exchange

# driver_step(task): one device after the other.
FUNC driver_step
        push rbx
        push r12
        mov rbx, rdi
        mov r12, [rdi + TASK_DATA]
        lea rsi, [r12 + DSW_OUT]
        mov edx, DSW_BYTES
        call worker_fill
        lea rdi, [r12 + DSW_IN]
        xor esi, esi
        mov edx, DSW_BYTES
        call memset                     # a read may bring less
        mov eax, [r12 + DSW_STEP]
        inc qword ptr [r12 + DSW_STEP]
        xor edx, edx
        mov ecx, NR_DEV_PATHS
        div ecx
        lea rax, [rip + dev_paths]
        mov rdi, [rax + rdx*8]
        mov esi, O_RDWR
        xor edx, edx
        call sys_open
        mov [r12 + DSW_FD], rax
        mov rdi, rbx
        mov rsi, rax
        call checksum_fold
        mov rdi, rbx
        mov rsi, r12
        call driver_exchange
        mov rdi, [r12 + DSW_FD]
        call sys_close
        mov rdi, rbx
        mov rsi, rax
        call checksum_fold
        pop r12
        pop rbx
        RETURN
END driver_step

# pipe_worker_setup(task): its state; the first to come makes the pipe of this CPU.
FUNC pipe_worker_setup
        push rbx
        mov esi, SIZEOF_PW
        call worker_alloc
        mov qword ptr [rax + PW_FD], -1
        PREEMPT_DISABLE
        mov rdi, gs:[PCPU_SELF]
        lea rdi, [rdi + pipe_ends]
        cmp qword ptr [rdi], 0
        jne 1f
        call do_pipe
        test rax, rax
        jz 1f
        lea rdi, [rip + .Lno_worker]
        call panic
1:      PREEMPT_ENABLE
        pop rbx
        RETURN
END pipe_worker_setup

# pipe_writer_setup(task)
FUNC pipe_writer_setup
        call pipe_worker_setup
        RETURN
END pipe_writer_setup

# pipe_reader_setup(task)
FUNC pipe_reader_setup
        call pipe_worker_setup
        RETURN
END pipe_reader_setup

# pipe_worker_fd(worker, end): rax = the current task's descriptor for its end of the pipe: 0 reads,
# 1 writes.
FUNC pipe_worker_fd
        push rbx
        push r12
        mov rbx, rdi
        mov r12, rsi
        mov rax, [rbx + PW_FD]
        test rax, rax
        jns 1f
        call get_unused_fd
        mov [rbx + PW_FD], rax
        mov rdi, rax
        mov rsi, gs:[pipe_ends + r12*8]
        call fd_install
        mov rax, [rbx + PW_FD]
1:      pop r12
        pop rbx
        RETURN
END pipe_worker_fd

# read_full(fd, buf, bytes): reads on until it has them all; how a pipe cuts them is a matter of time.
FUNC read_full
        push rbx
        push r12
        push r13
        mov rbx, rdi
        mov r12, rsi
        mov r13, rdx
1:      mov rdi, rbx
        mov rsi, r12
        mov rdx, r13
        call sys_read
        test rax, rax
        jle 2f
        add r12, rax
        sub r13, rax
        jnz 1b
2:      pop r13
        pop r12
        pop rbx
        RETURN
END read_full

# pipe_worker_crc(worker): takes the chunk in its buffer into the step's crc.
FUNC pipe_worker_crc
        push rbx
        mov rbx, rdi
        mov edi, [rbx + PW_CRC]
        lea rsi, [rbx + PW_BUF]
        mov edx, PW_CHUNK
        call crc32_le
        mov eax, eax
        mov [rbx + PW_CRC], rax
        pop rbx
        RETURN
END pipe_worker_crc

# pipe_writer_step(task): PW_CHUNKS chunks into the pipe; sleeps whenever it is full.
FUNC pipe_writer_step
        push rbx
        push r12
        push r13
        mov rbx, rdi
        mov r12, [rdi + TASK_DATA]
        mov qword ptr [r12 + PW_CRC], 0
        mov r13d, PW_CHUNKS
1:      mov rdi, rbx
        lea rsi, [r12 + PW_BUF]
        mov edx, PW_CHUNK
        call worker_fill
        mov rdi, r12
        call pipe_worker_crc
        mov rdi, r12
        mov esi, 1
        call pipe_worker_fd
        mov rdi, rax
        lea rsi, [r12 + PW_BUF]
        mov edx, PW_CHUNK
        call sys_write
        dec r13d
        jnz 1b
        mov rdi, rbx
        mov rsi, [r12 + PW_CRC]
        call checksum_fold
        pop r13
        pop r12
        pop rbx
        RETURN
END pipe_writer_step

# pipe_reader_step(task): as much out of it; sleeps whenever it is empty.
FUNC pipe_reader_step
        push rbx
        push r12
        push r13
        mov rbx, rdi
        mov r12, [rdi + TASK_DATA]
        mov qword ptr [r12 + PW_CRC], 0
        mov r13d, PW_CHUNKS
1:      mov rdi, r12
        xor esi, esi
        call pipe_worker_fd
        mov rdi, rax
        lea rsi, [r12 + PW_BUF]
        mov edx, PW_CHUNK
        call read_full
        mov rdi, r12
        call pipe_worker_crc
        dec r13d
        jnz 1b
        mov rdi, rbx
        mov rsi, [r12 + PW_CRC]
        call checksum_fold
        pop r13
        pop r12
        pop rbx
        RETURN
END pipe_reader_step

.section .rodata
.Lno_worker: .asciz "no memory for a worker"
.p2align 3
fs_open_flags:
        .quad O_RDWR | O_CREAT, O_RDWR | O_CREAT | O_APPEND
        .quad O_RDWR | O_TRUNC, O_RDWR
dev_paths:                      # the others have drivers too, and nobody opens them
        .quad .Ldev_null, .Ldev_zero, .Ldev_random, .Ldev_ttyS0, .Ldev_eth0, .Ldev_ram0, .Ldev_rtc
.irp node, null, zero, random, ttyS0, eth0, ram0, rtc
.Ldev_\node: .asciz "/dev/\node"
.endr
