# hpet: comparators of 32 bits at 14.318 MHz; its users count in microseconds.

.include "linkage.inc"
.include "percpu.inc"
.include "driver.inc"

.set HPET_KHZ, 14318

# hpet_usec_to_ticks(usec): modulo 2^32.
FUNC hpet_usec_to_ticks
        mov eax, edi
        imul rax, rax, HPET_KHZ
        xor edx, edx
        mov ecx, 1000
        div rcx
        mov eax, eax
        RETURN
END hpet_usec_to_ticks

# hpet_ticks_to_usec(ticks)
FUNC hpet_ticks_to_usec
        imul rax, rdi, 1000
        xor edx, edx
        mov ecx, HPET_KHZ
        div rcx
        RETURN
END hpet_ticks_to_usec

REGISTER_DRIVER hpet, "hpet", 228, 8, hpet_usec_to_ticks, hpet_ticks_to_usec
