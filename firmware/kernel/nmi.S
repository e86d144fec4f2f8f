# NMI handling: the watchdog of 2008 (arch/x86/kernel/nmi_64.c). All of it is notrace_nmi: an NMI may
# come while a call site is half changed, and must not execute one.

.include "linkage.inc"
.include "percpu.inc"

.percpu nmi_last_interrupts, 8          # timer interrupts when the watchdog looked last
.percpu nmi_alert_counter, 8            # NMIs since they last went on

.set NMI_OFFSET, 0x100000                # in preempt_count
.set NMI_ALERT_LIMIT, 1000000           # lets the watchdog count, and never bark in an emulator

# do_nmi(regs rdi). On the NMI stack; takes no lock, switches no task.
FUNC_NOTRACE do_nmi
        add qword ptr gs:[PCPU_PREEMPT_COUNT], NMI_OFFSET
        inc qword ptr gs:[PCPU_NMI_COUNT]
        call default_do_nmi
        sub qword ptr gs:[PCPU_PREEMPT_COUNT], NMI_OFFSET
        RETURN
END do_nmi

# default_do_nmi(): who sent it? Here only the watchdog does.
FUNC_NOTRACE default_do_nmi
        call nmi_watchdog_tick
        RETURN
END default_do_nmi

.ifdef CONFIG_NMI_BROKEN
# The same with notrace_nmi forgotten: the NMI path calls mcount.
FUNC nmi_watchdog_tick
.else
# nmi_watchdog_tick(): does the timer of this CPU go on?
FUNC_NOTRACE nmi_watchdog_tick
.endif
        mov rcx, gs:[PCPU_TIMER_INTERRUPTS]
        cmp rcx, gs:[nmi_last_interrupts]
        je 1f
        mov gs:[nmi_last_interrupts], rcx
        mov qword ptr gs:[nmi_alert_counter], 0
        RETURN
1:
        inc qword ptr gs:[nmi_alert_counter]
        cmp qword ptr gs:[nmi_alert_counter], NMI_ALERT_LIMIT
        jb 2f
        call die_nmi
2:
        RETURN
END nmi_watchdog_tick

# die_nmi(): the watchdog barks. Does not return.
FUNC_NOTRACE die_nmi
        mov al, 2
        out PORT_EXIT, al
        hlt
        jmp die_nmi
END die_nmi
