# rtc: the CMOS clock, whose registers count in BCD.

.include "linkage.inc"
.include "percpu.inc"
.include "driver.inc"

# bin2bcd(value): the last two digits, one in each half byte.
FUNC bin2bcd
        mov rax, rdi
        xor edx, edx
        mov ecx, 100
        div rcx
        mov eax, edx
        xor edx, edx
        mov ecx, 10
        div ecx
        shl eax, 4
        or eax, edx
        RETURN
END bin2bcd

# bcd2bin(value)
FUNC bcd2bin
        mov eax, edi
        shr eax, 4
        imul eax, eax, 10
        and edi, 15
        add eax, edi
        RETURN
END bcd2bin

REGISTER_DRIVER rtc, "rtc", 135, 8, bin2bcd, bcd2bin
