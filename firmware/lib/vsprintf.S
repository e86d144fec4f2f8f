# lib/vsprintf.S: numbers from text and text from numbers.
#
# There are no varargs here: vsnprintf takes an array of 64-bit words, one for each conversion.
# Everything works on the caller's buffers and the stack; any context will do.

.include "linkage.inc"

.set ZEROPAD, 1                         # pad with zeros, not with spaces
.set SIGNED, 2                          # the number is signed
.set SMALL, 0x20                        # lower case letters; also the bit that makes them so

        .rodata
.Lhex_digits:
        .ascii "0123456789ABCDEF"
        .text

# int hex_to_bin(char ch): 0 to 15, or -1 if ch is no hexadecimal digit.
FUNC hex_to_bin
        movzx eax, dil
        sub eax, 0x30                   # '0'
        cmp eax, 10
        jb 1f
        movzx eax, dil
        or eax, SMALL
        sub eax, 0x61                   # 'a'
        cmp eax, 6
        mov ecx, -11
        cmovae eax, ecx
        add eax, 10
        cdqe
1:      RETURN
END hex_to_bin

# char *pack_hex_byte(char *buf, u8 b): two lower-case digits; returns buf + 2.
FUNC pack_hex_byte
        movzx eax, sil
        mov ecx, eax
        shr ecx, 4
        and eax, 15
        movzx ecx, byte ptr [.Lhex_digits+rcx]
        movzx eax, byte ptr [.Lhex_digits+rax]
        or ecx, SMALL
        or eax, SMALL
        mov [rdi], cl
        mov [rdi+1], al
        lea rax, [rdi+2]
        RETURN
END pack_hex_byte

# unsigned simple_guess_base(const char *cp): 16 for 0x..., 8 for 0..., else 10.
FUNC simple_guess_base
        mov eax, 10
        cmp byte ptr [rdi], 0x30        # '0'
        jne 1f
        mov eax, 8
        movzx ecx, byte ptr [rdi+1]
        or ecx, SMALL
        cmp ecx, 0x78                   # 'x'
        jne 1f
        movzx edi, byte ptr [rdi+2]
        call isxdigit
        test eax, eax
        mov eax, 8
        mov ecx, 16
        cmovne eax, ecx
1:      RETURN
END simple_guess_base

# unsigned long simple_strtoul(const char *cp, char **endp, unsigned base): base 0 guesses. Stops
# at the first character that is no digit of the base; *endp (endp may be NULL) is set to it.
# Wraps around silently.
FUNC simple_strtoul
        push rbx
        push r12
        push r13
        push r14
        mov rbx, rdi
        mov r12, rsi
        mov r13d, edx
        xor r14d, r14d
        test edx, edx
        jne 1f
        call simple_guess_base
        mov r13d, eax
        cmp eax, 16
        jne 1f
        add rbx, 2                      # over the 0x
1:      movzx edi, byte ptr [rbx]
        call hex_to_bin
        cmp eax, r13d                   # -1 is above every base
        jae 2f
        imul r14, r13
        add r14, rax
        inc rbx
        jmp 1b
2:      test r12, r12
        je 3f
        mov [r12], rbx
3:      mov rax, r14
        pop r14
        pop r13
        pop r12
        pop rbx
        RETURN
END simple_strtoul

# long simple_strtol(const char *cp, char **endp, unsigned base): the same, with a leading '-'.
FUNC simple_strtol
        cmp byte ptr [rdi], 0x2d        # '-'
        je 1f
        call simple_strtoul
        RETURN
1:      inc rdi
        call simple_strtoul
        neg rax
        RETURN
END simple_strtol

# char *put_dec(char *buf, u64 n): the digits of n, lowest first; returns the end. At most 20.
# Clobbers rcx, rdx.
FUNC put_dec
        mov rax, rsi
        mov ecx, 10
1:      xor edx, edx
        div rcx
        add edx, 0x30                   # '0'
        mov [rdi], dl
        inc rdi
        test rax, rax
        jne 1b
        mov rax, rdi
        RETURN
END put_dec

# char *put_hex(char *buf, u64 n, int flags): the same in base 16; SMALL or 0. At most 16.
# Clobbers rcx.
FUNC put_hex
1:      mov ecx, esi
        and ecx, 15
        movzx ecx, byte ptr [.Lhex_digits+rcx]
        mov eax, edx
        and eax, SMALL
        or ecx, eax
        mov [rdi], cl
        inc rdi
        shr rsi, 4
        jne 1b
        mov rax, rdi
        RETURN
END put_hex

# char *pad(char *buf, char *end, int c, long n): n times c, stored only below end; returns the
# end had there been room. Does nothing for n <= 0.
FUNC pad
1:      test rcx, rcx
        jle 3f
        cmp rdi, rsi
        jae 2f
        mov [rdi], dl
2:      inc rdi
        dec rcx
        jmp 1b
3:      mov rax, rdi
        RETURN
END pad

# char *number(char *buf, char *end, u64 num, int base, int width, int flags): base 10 or 16.
# Stores only below end; returns the end had there been room.
FUNC number
        push rbx
        push r12
        push r13
        push r14
        push r15
        sub rsp, 40                     # tmp[32]: the digits, lowest first; [32]: width
        mov rbx, rdi
        mov r12, rsi
        mov r14d, r9d
        movsxd r8, r8d
        mov [rsp+32], r8
        xor r15d, r15d                  # 1: a '-' goes in front
        test r14d, SIGNED
        je 1f
        test rdx, rdx
        jns 1f
        neg rdx
        inc r15d
1:      mov rdi, rsp
        mov rsi, rdx
        cmp ecx, 16
        jne 2f
        mov edx, r14d
        call put_hex
        jmp 3f
2:      call put_dec
3:      mov r13, rax                    # behind the highest digit
        sub rax, rsp
        add rax, r15
        sub [rsp+32], rax               # what is left of the width
        test r14d, ZEROPAD
        jne 4f
        mov edx, 0x20                   # ' ': in front of the sign
        mov rdi, rbx
        mov rsi, r12
        mov rcx, [rsp+32]
        call pad
        mov rbx, rax
        mov qword ptr [rsp+32], 0
4:      mov edx, 0x2d                   # '-'
        mov rdi, rbx
        mov rsi, r12
        mov rcx, r15
        call pad
        mov rbx, rax
        mov edx, 0x30                   # '0': behind it
        mov rdi, rbx
        mov rsi, r12
        mov rcx, [rsp+32]
        call pad
        mov rbx, rax
5:      dec r13
        movzx eax, byte ptr [r13]
        cmp rbx, r12
        jae 6f
        mov [rbx], al
6:      inc rbx
        cmp r13, rsp
        jne 5b
        mov rax, rbx
        add rsp, 40
        pop r15
        pop r14
        pop r13
        pop r12
        pop rbx
        RETURN
END number

# char *string(char *buf, char *end, const char *s, int width): s, padded with spaces in front;
# "<NULL>" for NULL. Stores only below end; returns the end had there been room.
        .rodata
.Lnull_string:
        .asciz "<NULL>"
        .text
FUNC string
        push rbx
        push r12
        push r13
        push r14
        mov rbx, rdi
        mov r12, rsi
        lea r13, [rip+.Lnull_string]
        test rdx, rdx
        cmovne r13, rdx
        movsxd r14, ecx
        mov rdi, r13
        call strlen
        mov rcx, r14
        mov r14, rax
        sub rcx, rax
        mov rdi, rbx
        mov rsi, r12
        mov edx, 0x20                   # ' '
        call pad
        mov rbx, rax
        lea r14, [r14+rbx]              # the end had there been room
        mov rdx, r14
        cmp rdx, r12
        cmova rdx, r12
        sub rdx, rbx
        jle 1f
        mov rdi, rbx
        mov rsi, r13
        call memcpy
1:      mov rax, r14
        pop r14
        pop r13
        pop r12
        pop rbx
        RETURN
END string

# int skip_atoi(const char **s): the decimal number at *s, 0 if there is none; *s moves behind it.
FUNC skip_atoi
        mov rsi, rdi
        mov rdi, [rdi]
        mov edx, 10
        call simple_strtoul
        RETURN
END skip_atoi

# int vsnprintf(char *buf, size_t size, const char *fmt, const u64 *args): the length of the
# result had there been room. buf is terminated unless size is 0.
#
# Knows %s %c %d %u %x %X %%, an l for 64-bit numbers, a width, and a 0 in front of it. What it
# does not know it copies.
#
# rbx str, r12 end, r13 args, r14d flags, r15d 1 after an l; [rsp] fmt, [rsp+8] buf,
# [rsp+16] size, [rsp+24] width
FUNC vsnprintf
        push rbx
        push r12
        push r13
        push r14
        push r15
        sub rsp, 40
        mov [rsp], rdx
        mov [rsp+8], rdi
        mov [rsp+16], rsi
        mov rbx, rdi
        lea r12, [rdi+rsi]
        mov r13, rcx
.Lvsn_next:
        mov rcx, [rsp]
        movzx edx, byte ptr [rcx]
        test edx, edx
        je .Lvsn_done
        inc rcx
        mov [rsp], rcx
        cmp edx, 0x25                   # '%'
        je .Lvsn_conversion
.Lvsn_char:                             # dl = the character
        cmp rbx, r12
        jae 5f
        mov [rbx], dl
5:      inc rbx
        jmp .Lvsn_next

.Lvsn_conversion:
        xor r14d, r14d
        xor r15d, r15d
        cmp byte ptr [rcx], 0x30        # '0'
        jne 1f
        mov r14d, ZEROPAD
1:      mov rdi, rsp
        call skip_atoi
        mov [rsp+24], rax
        mov rcx, [rsp]
        cmp byte ptr [rcx], 0x6c        # 'l'
        jne 2f
        inc r15d
        inc rcx
2:      movzx edx, byte ptr [rcx]
        test edx, edx
        je .Lvsn_done                   # a lone % ends it
        inc rcx
        mov [rsp], rcx
        mov ecx, 10
        cmp edx, 0x64                   # 'd'
        je .Lvsn_signed
        cmp edx, 0x75                   # 'u'
        je .Lvsn_unsigned
        mov ecx, 16
        cmp edx, 0x58                   # 'X'
        je .Lvsn_unsigned
        cmp edx, 0x73                   # 's'
        je .Lvsn_string
        cmp edx, 0x63                   # 'c'
        je .Lvsn_argument_char
        cmp edx, 0x78                   # 'x'
        jne .Lvsn_char                  # %% as well
        or r14d, SMALL
.Lvsn_unsigned:
        mov edx, [r13]
        test r15d, r15d
        je .Lvsn_number
        mov rdx, [r13]
        jmp .Lvsn_number
.Lvsn_signed:
        or r14d, SIGNED
        movsxd rdx, dword ptr [r13]
        test r15d, r15d
        je .Lvsn_number
        mov rdx, [r13]
.Lvsn_number:                           # rdx = num, ecx = base
        add r13, 8
        mov rdi, rbx
        mov rsi, r12
        mov r8d, [rsp+24]
        mov r9d, r14d
        call number
        mov rbx, rax
        jmp .Lvsn_next

.Lvsn_string:
        mov rdi, rbx
        mov rsi, r12
        mov rdx, [r13]
        add r13, 8
        mov ecx, [rsp+24]
        call string
        mov rbx, rax
        jmp .Lvsn_next

.Lvsn_argument_char:
        movzx edx, byte ptr [r13]
        add r13, 8
        jmp .Lvsn_char

.Lvsn_done:
        mov rax, rbx
        sub rax, [rsp+8]
        mov rcx, [rsp+16]
        test rcx, rcx
        je 4f
        cmp rbx, r12
        jb 3f
        lea rbx, [r12-1]                # no room: the last byte gives way
3:      mov byte ptr [rbx], 0
4:      add rsp, 40
        pop r15
        pop r14
        pop r13
        pop r12
        pop rbx
        RETURN
END vsnprintf

# int snprintf(char *buf, size_t size, const char *fmt, u64 a, u64 b, u64 c): vsnprintf with up to
# three arguments.
FUNC snprintf
        sub rsp, 32
        mov [rsp], rcx
        mov [rsp+8], r8
        mov [rsp+16], r9
        mov rcx, rsp
        call vsnprintf
        add rsp, 32
        RETURN
END snprintf

# int scnprintf(char *buf, size_t size, const char *fmt, u64 a, u64 b, u64 c): the same, but
# returns the length that is in buf. size must not be 0.
FUNC scnprintf
        push rbx
        lea rbx, [rsi-1]
        call snprintf
        cmp rax, rbx
        cmova rax, rbx
        pop rbx
        RETURN
END scnprintf

# size_t hex_dump_to_buffer(const void *p, size_t len, char *linebuf): "00 ff ..." and a NUL;
# linebuf must hold 3 * len bytes, at least 1. Returns the length of the text.
FUNC hex_dump_to_buffer
        push rbx
        push r12
        push r13
        push r14
        mov rbx, rdi
        lea r12, [rdi+rsi]
        mov r13, rdx
        mov r14, rdx
1:      cmp rbx, r12
        je 3f
        cmp r13, r14
        je 2f
        mov byte ptr [r13], 0x20        # ' ' between bytes
        inc r13
2:      mov rdi, r13
        movzx esi, byte ptr [rbx]
        call pack_hex_byte
        mov r13, rax
        inc rbx
        jmp 1b
3:      mov byte ptr [r13], 0
        mov rax, r13
        sub rax, r14
        pop r14
        pop r13
        pop r12
        pop rbx
        RETURN
END hex_dump_to_buffer
