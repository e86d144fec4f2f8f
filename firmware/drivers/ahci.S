# ahci: a SATA disk. Sectors of 32 bytes go through the port's command table, one at a time.

.include "linkage.inc"
.include "percpu.inc"
.include "driver.inc"

.set AHCI_SECTOR, 32
.percpu ahci_cmd_table, 8               # bit n: slot n is issued

# ahci_qc_prep(slot): takes a command slot.
FUNC ahci_qc_prep
        bts qword ptr gs:[ahci_cmd_table], rdi
        RETURN
END ahci_qc_prep

# ahci_qc_complete(slot): gives it back.
FUNC ahci_qc_complete
        btr qword ptr gs:[ahci_cmd_table], rdi
        RETURN
END ahci_qc_complete

# ahci_sg_transfer(dst, src, len, pos): sector by sector. A slot is in use with preemption off only.
FUNC ahci_sg_transfer
        push rbx
        push r12
        push r13
        push r14
        mov r12, rdi
        mov r13, rsi
        mov r14, rdx
        mov rbx, rcx
        PREEMPT_DISABLE
1:      test r14, r14
        jz 2f
        mov rdi, rbx
        shr rdi, 5
        and edi, 31
        call ahci_qc_prep
        mov edx, AHCI_SECTOR
        mov ecx, ebx
        and ecx, AHCI_SECTOR - 1
        sub edx, ecx
        cmp rdx, r14
        cmova rdx, r14                  # up to the end of the sector
        mov rdi, r12
        mov rsi, r13
        add r12, rdx
        add r13, rdx
        sub r14, rdx
        push rbx
        add rbx, rdx
        call memcpy
        pop rdi
        shr rdi, 5
        and edi, 31
        call ahci_qc_complete
        jmp 1b
2:      PREEMPT_ENABLE
        pop r14
        pop r13
        pop r12
        pop rbx
        RETURN
END ahci_sg_transfer

BLOCK_DRIVER ahci, "sda", SCSI_DISK0_MAJOR << 8, 256, ahci_sg_transfer
