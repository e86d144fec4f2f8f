# The runtime: what is linked in beside an ELF image. It starts the image and holds what its calls
# lead to: mcount, the recorder and the tracers. The loader leaves each CPU as it leaves one to the
# mini-kernel; nothing here is traced.

.include "linkage.inc"
.include "percpu.inc"

# Where an undefined mcount and an undefined __fentry__ of the image are linked to. Its call sites
# are made to call the real one; whatever else holds their address finds a function that returns.
ENTRY undefined_mcount
        ret
        .p2align 3, 0xcc
undefined_fentry:
        ret
END undefined_mcount

# The boot CPU: constructors, the other CPUs, then the entry with up to six arguments. What it returns
# is kept.
ENTRY startup_64
        xor ebp, ebp                    # the end of every backtrace
        cld
        sub rsp, 8                      # aligned in front of a call
        call load_idt
        call ftrace_dynamic_init
        call do_init_array
        call start_secondaries
        sti                             # nothing interrupts but who asks for a stop
        lea r12, [rip + image_start]
        mov rdi, [r12 + IMAGE_START_ARGUMENTS]
        mov rsi, [r12 + IMAGE_START_ARGUMENTS + 8]
        mov rdx, [r12 + IMAGE_START_ARGUMENTS + 16]
        mov rcx, [r12 + IMAGE_START_ARGUMENTS + 24]
        mov r8, [r12 + IMAGE_START_ARGUMENTS + 32]
        mov r9, [r12 + IMAGE_START_ARGUMENTS + 40]
        xor eax, eax                    # no vector registers, for a function of varying arguments
        call [r12 + IMAGE_START_ENTRY]
        lea r12, [rip + image_start]
        mov [r12 + IMAGE_START_RESULT], rax
        mov qword ptr [r12 + IMAGE_START_RETURNED], 1
        jmp play_dead
END startup_64

# The other CPUs: the secondary entry, with the CPU's number.
ENTRY secondary_startup_64
        xor ebp, ebp
        cld
        sub rsp, 8
        call load_idt
        mov rdi, gs:[PCPU_CPU]
        sti
        lea r12, [rip + image_start]
        call [r12 + IMAGE_START_SECONDARY]
        jmp play_dead
END secondary_startup_64

# play_dead(): this CPU leaves the machine. Does not return.
ENTRY play_dead
        cli
        out PORT_CPU_OFFLINE, al
        hlt
        jmp play_dead
END play_dead

# start_secondaries(): bring the other CPUs up, if the image has something for them to do.
ENTRY start_secondaries
        mov ecx, 1
1:
        cmp rcx, [rip + image_start + IMAGE_START_NR_CPUS]
        jae 2f
        mov eax, ecx
        mov edx, PORT_CPU_START
        out dx, eax
        inc ecx
        jmp 1b
2:
        ret
END start_secondaries

# do_init_array(): what .init_array lists, in its order.
ENTRY do_init_array
        push rbx
        push r12
        lea rbx, [rip + image_start]
        mov r12, [rbx + IMAGE_START_INIT_END]
        mov rbx, [rbx + IMAGE_START_INIT]
        sub rsp, 8                      # the ABI's alignment
1:
        cmp rbx, r12
        jae 2f
        xor edi, edi
        xor esi, esi
        xor edx, edx
        call [rbx]
        add rbx, 8
        jmp 1b
2:
        add rsp, 8
        pop r12
        pop rbx
        ret
END do_init_array

# load_idt(): a table with a gate for NMIs alone, until the image loads its own. Exceptions have none:
# a fault is for the machine to report.
ENTRY load_idt
        lea rdi, [rip + idt_table + 16 * NMI_VECTOR]
        lea rsi, [rip + nmi]
        mov [rdi], si
        mov word ptr [rdi + 2], 0x10            # KERNEL_CS
        mov word ptr [rdi + 4], 0x8e01          # IST 1, an interrupt gate
        shr rsi, 16
        mov [rdi + 6], si
        shr rsi, 16
        mov [rdi + 8], rsi
        lea rax, [rip + idt_descr]
        lidt [rax]
        mov qword ptr gs:[PCPU_ONLINE], 1
        ret
END load_idt

# Non-maskable interrupt, on its own stack.
ENTRY nmi
        inc qword ptr gs:[PCPU_NMI_COUNT]
        iretq
END nmi

.data
        .p2align 4
idt_table:
        .skip 16 * 256
idt_descr:
        .short 16 * 256 - 1
        .quad idt_table
        .p2align 3
image_start:                            # the loader writes
        .skip IMAGE_START_SIZE
