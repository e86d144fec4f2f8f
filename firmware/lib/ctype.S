# lib/ctype.S: character classes, from one table of bits as in lib/ctype.c.
#
# Each takes a character in rdi, of which the low byte counts, and clobbers rax alone.

.include "linkage.inc"

.set CTYPE_U, 0x01                      # upper
.set CTYPE_L, 0x02                      # lower
.set CTYPE_D, 0x04                      # digit
.set CTYPE_C, 0x08                      # control
.set CTYPE_P, 0x10                      # punctuation
.set CTYPE_S, 0x20                      # white space
.set CTYPE_X, 0x40                      # hexadecimal digit
.set CTYPE_SP, 0x80                     # the space itself

        .rodata
.macro CTYPE_RUN count, class
.rept \count
        .byte \class
.endr
.endm

_ctype:
        CTYPE_RUN 9, CTYPE_C            # 0x00
        CTYPE_RUN 5, CTYPE_C+CTYPE_S    # \t \n \v \f \r
        CTYPE_RUN 18, CTYPE_C
        CTYPE_RUN 1, CTYPE_S+CTYPE_SP
        CTYPE_RUN 15, CTYPE_P           # ! to /
        CTYPE_RUN 10, CTYPE_D
        CTYPE_RUN 7, CTYPE_P            # : to @
        CTYPE_RUN 6, CTYPE_U+CTYPE_X
        CTYPE_RUN 20, CTYPE_U
        CTYPE_RUN 6, CTYPE_P            # [ to `
        CTYPE_RUN 6, CTYPE_L+CTYPE_X
        CTYPE_RUN 20, CTYPE_L
        CTYPE_RUN 4, CTYPE_P            # { to ~
        CTYPE_RUN 1, CTYPE_C            # DEL
        CTYPE_RUN 128, 0
        .text

# \name(c): non-zero if c is of one of the classes in \mask.
.macro CTYPE_IS name, mask
FUNC \name
        movzx eax, dil
        movzx eax, byte ptr [_ctype+rax]
        and eax, \mask
        RETURN
END \name
.endm

        CTYPE_IS isalpha, CTYPE_U+CTYPE_L
        CTYPE_IS isdigit, CTYPE_D
        CTYPE_IS isspace, CTYPE_S
        CTYPE_IS isxdigit, CTYPE_D+CTYPE_X
        CTYPE_IS isprint, CTYPE_P+CTYPE_U+CTYPE_L+CTYPE_D+CTYPE_SP

# int tolower(int c)
FUNC tolower
        movzx eax, dil
        test byte ptr [_ctype+rax], CTYPE_U
        je 1f
        add eax, 0x20
1:      RETURN
END tolower

# int toupper(int c)
FUNC toupper
        movzx eax, dil
        test byte ptr [_ctype+rax], CTYPE_L
        je 1f
        sub eax, 0x20
1:      RETURN
END toupper
