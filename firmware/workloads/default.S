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
        WORKER fs, 3
        WORKER pipe_writer, 1
        WORKER pipe_reader, 1
        WORKER driver, 2
        WORKER sort, 2
        WORKER hash, 1
        WORKER crc, 3
        .quad 0
