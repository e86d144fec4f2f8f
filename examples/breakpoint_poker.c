/*
 * The breakpoint protocol as guest code: dynftrace-emu explore --guest examples/breakpoint_poker.c
 *
 * int3 over the first byte of every site, then the tails, then the first bytes, with a sync behind each;
 * whoever runs into an int3 meanwhile does what the new instruction would.
 */
#include "lab.h"

static u64 text_mutex;

static struct {
        const struct poke_change *changes;
        long count;
        u64 refs;
} desc;

int poke_int3_handler(struct pt_regs *regs)
{
        u64 site = regs->ip - 1;
        int handled = 0;
        long i;

        if (!atomic_inc_not_zero(&desc.refs))
                return 0;
        for (i = 0; i < desc.count; i++) {
                const struct poke_change *change = &desc.changes[i];

                if (change->site != site)
                        continue;
                regs->ip = site + POKE_TEXT_SIZE;
                if (change->kind == POKE_CALL)
                        int3_emulate_call(regs, change->target);
                handled = 1;
                break;
        }
        atomic_dec(&desc.refs);
        return handled;
}

void poker(const struct poke_change *changes, long count)
{
        u8 int3 = INT3_INSN_OPCODE;
        long i;

        mutex_lock(&text_mutex);
        desc.changes = changes;
        desc.count = count;
        atomic_set(&desc.refs, 1);

        for (i = 0; i < count; i++)
                text_poke(changes[i].site, &int3, 1);
        text_poke_sync();
        for (i = 0; i < count; i++)
                text_poke(changes[i].site + 1, changes[i].new + 1, 4);
        text_poke_sync();
        for (i = 0; i < count; i++)
                text_poke(changes[i].site, changes[i].new, 1);
        text_poke_sync();

        atomic_dec(&desc.refs);
        while (atomic_read(&desc.refs))
                cpu_relax();
        mutex_unlock(&text_mutex);
}
