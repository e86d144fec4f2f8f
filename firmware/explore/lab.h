/*
 * What guest code that patches by itself is compiled against: a poker, and its int3 handler.
 *
 * Define these two:
 *
 *      void poker(const struct poke_change *changes, long count);
 *      int poke_int3_handler(struct pt_regs *regs);
 *
 * The poker runs once, on a CPU of its own, while tasks on the other CPUs call the functions whose
 * sites it changes. The handler is called for every int3 of every CPU, with interrupts off; it returns
 * 0 for one that is not its own, which is a finding (unclaimed-int3).
 *
 * Stores to text go through text_poke(): text is read-only. They are whole within an aligned chunk of
 * text; when other CPUs fetch them depends on the text model. All other memory is sequentially
 * consistent.
 */
#ifndef LAB_H
#define LAB_H

typedef unsigned char u8;
typedef unsigned long u64;

#define INT3_INSN_OPCODE        0xcc
#define POKE_TEXT_SIZE          5

enum poke_kind { POKE_CALL = 1, POKE_NOP = 2 };

/* One site: its bytes before and after, and what the new ones do. */
struct poke_change {
        u64 site;
        u8 old[8];
        u8 new[8];
        u64 kind;               /* POKE_CALL: calls target; POKE_NOP: goes on behind the site */
        u64 target;
};

/* What the interrupted code goes on with; ip is behind the int3. */
struct pt_regs {
        u64 r15, r14, r13, r12, bp, bx, r11, r10, r9, r8, ax, cx, dx, si, di;
        u64 ip, cs, flags, sp, ss;
};

/* The shim: answered by the machine, step by step; others get on in between. */
void text_poke(u64 address, const void *bytes, long count);
void text_poke_sync(void);              /* on_each_cpu(do_sync_core, NULL, 1) */

/* Guest code of the lab. */
void mutex_lock(u64 *lock);
void mutex_unlock(u64 *lock);

#define READ_ONCE(x)            (*(volatile __typeof__(x) *)&(x))
#define WRITE_ONCE(x, v)        (*(volatile __typeof__(x) *)&(x) = (v))
#define cpu_relax()             __asm__ volatile("pause" ::: "memory")
#define barrier()               __asm__ volatile("" ::: "memory")

static inline u64 atomic_read(u64 *v)           { return __atomic_load_n(v, __ATOMIC_SEQ_CST); }
static inline void atomic_set(u64 *v, u64 x)    { __atomic_store_n(v, x, __ATOMIC_SEQ_CST); }
static inline void atomic_inc(u64 *v)           { __atomic_fetch_add(v, 1, __ATOMIC_SEQ_CST); }
static inline void atomic_dec(u64 *v)           { __atomic_fetch_sub(v, 1, __ATOMIC_SEQ_CST); }

static inline int atomic_inc_not_zero(u64 *v)
{
        u64 old = atomic_read(v);

        do {
                if (!old)
                        return 0;
        } while (!__atomic_compare_exchange_n(v, &old, old + 1, 0, __ATOMIC_SEQ_CST,
                                              __ATOMIC_SEQ_CST));
        return 1;
}

/* Go on as if a call to func stood in front of regs->ip. The entry code left room for it. */
static inline void int3_emulate_call(struct pt_regs *regs, u64 func)
{
        regs->sp -= 8;
        *(volatile u64 *)regs->sp = regs->ip;
        regs->ip = func;
}

#endif
