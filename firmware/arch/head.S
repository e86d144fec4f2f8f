# Entry points. The loader leaves each CPU in long mode with paging, a flat GDT, its TSS loaded, GS
# at its per-CPU area and RSP at the top of its first stack; interrupts are off, RDI is the CPU's
# number. (Linux does the same work in arch/x86/kernel/head_64.S before it gets here.)

.include "linkage.inc"
.include "percpu.inc"

# The boot CPU starts here. Does not return.
ENTRY startup_64
        xor ebp, ebp                    # the end of every backtrace
        cld
        call start_kernel
        ud2
END startup_64

# The other CPUs start here, when the boot CPU writes their number to PORT_CPU_START.
ENTRY secondary_startup_64
        xor ebp, ebp
        cld
        call start_secondary
        ud2
END secondary_startup_64

.data
boot_params:
        .skip BOOT_PARAMS_SIZE
