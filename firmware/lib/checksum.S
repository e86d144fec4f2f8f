# lib/checksum.S: Internet checksums (RFC 1071), and the fold of a task's results.

.include "linkage.inc"

# void checksum_fold(struct task_struct *task, u64 value): task->checksum becomes
# rol(task->checksum, 5) ^ value * 2^64/phi. Clobbers rax alone, keeps the arguments. Only the task
# itself calls it, so that its checksum depends on nobody else.
FUNC checksum_fold
        mov rax, 0x9e3779b97f4a7c15
        imul rax, rsi
        rol qword ptr [rdi+TASK_CHECKSUM], 5
        xor [rdi+TASK_CHECKSUM], rax
        RETURN
END checksum_fold

# u16 from32to16(u32 x): one's complement sum of the halves.
FUNC from32to16
        mov eax, edi
        shr eax, 16
        movzx ecx, di
        add eax, ecx
        mov ecx, eax
        shr ecx, 16
        add eax, ecx
        movzx eax, ax
        RETURN
END from32to16

# u32 csum_partial(const void *buff, size_t len, u32 sum): adds buff, as 16-bit words in memory
# order, an odd byte padded with a zero. Not folded: different values may stand for the same sum.
FUNC csum_partial
        mov eax, edx
        mov rcx, rsi
        shr rcx, 2
        je 2f
1:      mov edx, [rdi]
        add eax, edx
        adc eax, 0
        add rdi, 4
        dec rcx
        jne 1b
2:      test esi, 2
        je 3f
        movzx edx, word ptr [rdi]
        add rdi, 2
        add eax, edx
        adc eax, 0
3:      test esi, 1
        je 4f
        movzx edx, byte ptr [rdi]
        add eax, edx
        adc eax, 0
4:      RETURN
END csum_partial

# u16 csum_fold(u32 sum): folded and inverted.
FUNC csum_fold
        call from32to16
        xor eax, 0xffff
        RETURN
END csum_fold

# u16 ip_compute_csum(const void *buff, size_t len)
FUNC ip_compute_csum
        xor edx, edx
        call csum_partial
        mov edi, eax
        call csum_fold
        RETURN
END ip_compute_csum

# u16 ip_fast_csum(const void *iph, unsigned ihl): of an IP header, ihl words long.
FUNC ip_fast_csum
        mov esi, esi
        shl rsi, 2
        call ip_compute_csum
        RETURN
END ip_fast_csum

# u16 csum_tcpudp_magic(u32 saddr, u32 daddr, u16 len, u8 proto, u32 sum): with the pseudo header;
# addresses in network order.
FUNC csum_tcpudp_magic
        movzx edx, dx
        movzx ecx, cl
        add edx, ecx
        shl edx, 8                      # len and proto in network order
        mov edi, edi
        mov esi, esi
        mov eax, r8d
        add rax, rdi
        add rax, rsi
        add rax, rdx
        mov edi, eax
        shr rax, 32
        add edi, eax
        adc edi, 0
        call csum_fold
        RETURN
END csum_tcpudp_magic
