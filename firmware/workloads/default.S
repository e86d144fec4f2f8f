# workload "default": a kernel's day: files, a pipe, drivers, sorting and hashing. An
# iteration is about 60,000 instructions without the calls to mcount.

.include "linkage.inc"
.include "percpu.inc"
.include "workload.inc"

.rodata
.Lname_fs:
        .asciz "fs"
.Lname_pipe_writer:
        .asciz "pipe_writer"
.Lname_pipe_reader:
        .asciz "pipe_reader"
.Lname_driver:
        .asciz "driver"
.Lname_sort:
        .asciz "sort"
.Lname_crc:
        .asciz "crc"
.Lname_hash:
        .asciz "hash"
        .p2align 3
workload_list_default:
        WORKER fs, 4
        WORKER pipe_writer, 2
        WORKER pipe_reader, 2
        WORKER driver, 3
        WORKER sort, 3
        WORKER hash, 2
        WORKER crc, 2
        .quad 0
