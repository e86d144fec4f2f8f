# The interrupt descriptor table. Exceptions have no gates: a fault in this kernel is for the machine
# to report.

.include "linkage.inc"
.include "percpu.inc"

.set GATE_INTERRUPT, 0x8e               # present, DPL 0, 64-bit interrupt gate
.set KERNEL_CS, 0x10
.set IDT_ENTRIES, 256
.set NMI_IST, 1

# pack_gate(gate *rdi, handler rsi, ist edx): fill one 16-byte gate.
FUNC pack_gate
        mov [rdi], si
        mov word ptr [rdi + 2], KERNEL_CS
        mov [rdi + 4], dl
        mov byte ptr [rdi + 5], GATE_INTERRUPT
        shr rsi, 16
        mov [rdi + 6], si
        shr rsi, 16
        mov [rdi + 8], esi
        mov dword ptr [rdi + 12], 0
        RETURN
END pack_gate

# set_intr_gate(vector edi, handler rsi)
FUNC set_intr_gate
        xor edx, edx
        call set_intr_gate_ist
        RETURN
END set_intr_gate

# set_intr_gate_ist(vector edi, handler rsi, ist edx)
FUNC set_intr_gate_ist
        mov edi, edi
        shl rdi, 4
        lea rax, [rip + idt_table]
        add rdi, rax
        call pack_gate
        RETURN
END set_intr_gate_ist

# trap_init(): on the boot CPU, once.
FUNC trap_init
        mov edi, NMI_VECTOR
        lea rsi, [rip + nmi]
        mov edx, NMI_IST
        call set_intr_gate_ist
        mov edi, TIMER_VECTOR
        lea rsi, [rip + apic_timer_interrupt]
        call set_intr_gate
        RETURN
END trap_init

# cpu_init(): on every CPU, interrupts off.
FUNC cpu_init
        lea rax, [rip + idt_descr]
        lidt [rax]
        mov qword ptr gs:[PCPU_ONLINE], 1
        RETURN
END cpu_init

.data
        .p2align 4
idt_table:
        .skip IDT_ENTRIES * 16
idt_descr:
        .short IDT_ENTRIES * 16 - 1
        .quad idt_table
