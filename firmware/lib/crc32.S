# lib/crc32.S: CRC-32, the bit-reversed (little-endian) kind of Ethernet and zlib, and the other.
#
# As in lib/crc32.c the caller inverts: zlib's crc32(p) is ~crc32_le(~0, p, len). The tables are
# written once, by an initcall on the boot CPU, and read only from then on.

.include "linkage.inc"

.set CRCPOLY_LE, 0xedb88320
.set CRCPOLY_BE, 0x04c11db7

        .bss
        .p2align 6
# u32 crc32table_le[4][256]: row k is the remainder of a byte followed by k zero bytes.
crc32table_le:
        .skip 4096
        .text

# void crc32init_le(void): row 0 from its powers of two, as crc is linear; then the other rows.
FUNC crc32init_le
        mov dword ptr [rip+crc32table_le], 0
        mov eax, 1                      # crc
        mov ecx, 0x80                   # i
1:      shr eax, 1
        jnc 2f
        xor eax, CRCPOLY_LE
2:      xor edx, edx                    # j
3:      mov esi, [crc32table_le+rdx*4]
        xor esi, eax
        lea edi, [rcx+rdx]
        mov [crc32table_le+rdi*4], esi
        lea edx, [rdx+rcx*2]
        cmp edx, 256
        jb 3b
        shr ecx, 1
        jne 1b
        call crc32init_slices
        RETURN
END crc32init_le
        INITCALL crc32init_le

# static void crc32init_slices(void): rows 1 to 3, each from the one before.
FUNC crc32init_slices
        xor ecx, ecx
1:      mov eax, [crc32table_le+rcx*4]
        movzx edx, al
        shr eax, 8
        xor eax, [crc32table_le+rdx*4]
        mov [crc32table_le+1024+rcx*4], eax
        inc ecx
        cmp ecx, 768
        jb 1b
        RETURN
END crc32init_slices

# u32 crc32_le(u32 crc, const u8 *p, size_t len): a byte at a time.
FUNC crc32_le
        mov eax, edi
        add rdx, rsi
1:      cmp rsi, rdx
        jae 2f
        movzx ecx, byte ptr [rsi]
        inc rsi
        xor cl, al
        shr eax, 8
        xor eax, [crc32table_le+rcx*4]
        jmp 1b
2:      RETURN
END crc32_le

# u32 crc32_body(u32 crc, const u32 *p, size_t words): four bytes at a time.
FUNC crc32_body
        mov eax, edi
1:      test rdx, rdx
        je 2f
        xor eax, [rsi]
        add rsi, 4
        movzx ecx, al
        mov edi, [crc32table_le+3072+rcx*4]
        movzx ecx, ah
        xor edi, [crc32table_le+2048+rcx*4]
        shr eax, 16
        movzx ecx, al
        xor edi, [crc32table_le+1024+rcx*4]
        shr eax, 8
        xor edi, [crc32table_le+rax*4]
        mov eax, edi
        dec rdx
        jmp 1b
2:      RETURN
END crc32_body

# u32 crc32_le_slice4(u32 crc, const u8 *p, size_t len): what crc32_le returns, in bytes up to the
# first aligned word, words, and the bytes that are left.
FUNC crc32_le_slice4
        push rbx
        push r12
        mov rbx, rsi
        mov r12, rdx
        mov rdx, rsi
        neg rdx
        and edx, 3
        cmp rdx, r12
        cmova rdx, r12
        add rbx, rdx
        sub r12, rdx
        call crc32_le
        mov edi, eax
        mov rsi, rbx
        mov rdx, r12
        and rdx, -4
        add rbx, rdx
        shr rdx, 2
        call crc32_body
        mov edi, eax
        mov rsi, rbx
        mov rdx, r12
        and edx, 3
        call crc32_le
        pop r12
        pop rbx
        RETURN
END crc32_le_slice4

# u32 crc32_be(u32 crc, const u8 *p, size_t len): highest bit first; a bit at a time, for the few
# that need it.
FUNC crc32_be
        mov eax, edi
        add rdx, rsi
1:      cmp rsi, rdx
        jae 4f
        movzx ecx, byte ptr [rsi]
        inc rsi
        shl ecx, 24
        xor eax, ecx
        mov ecx, 8
2:      add eax, eax
        jnc 3f
        xor eax, CRCPOLY_BE
3:      dec ecx
        jne 2b
        jmp 1b
4:      RETURN
END crc32_be
