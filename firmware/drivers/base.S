# The driver core: drivers that are registered on this CPU, their nodes in /dev, and their power.

.include "linkage.inc"
.include "percpu.inc"
.include "driver.inc"

.set MAX_DRIVERS, 16
.percpu drivers, 128                    # struct device_driver *, in order of registration
.percpu nr_drivers, 8
.percpu dpm_cursor, 8                   # whose turn dpm_cycle() has come to

# driver_find(name): rax = the registered driver of that name, or 0.
FUNC driver_find
        push rbx
        push r12
        mov r12, rdi
        xor ebx, ebx
1:      cmp rbx, gs:[nr_drivers]
        jae 2f
        mov rdi, gs:[drivers + rbx*8]
        mov rdi, [rdi + DRV_NAME]
        mov rsi, r12
        call strcmp
        inc rbx
        test eax, eax
        jnz 1b
        mov rax, gs:[drivers + rbx*8 - 8]
        jmp 3f
2:      xor eax, eax
3:      pop r12
        pop rbx
        RETURN
END driver_find

# driver_register(driver): 0, -EBUSY if the name is taken, or what probing it returned.
FUNC driver_register
        push rbx
        mov rbx, rdi
        mov rdi, [rbx + DRV_NAME]
        call driver_find
        test rax, rax
        mov rax, E_BUSY
        jnz 1f
        mov rcx, gs:[nr_drivers]
        mov rax, E_NOSPC
        cmp rcx, MAX_DRIVERS
        jae 1f
        mov rdi, rbx
        call driver_probe
        test rax, rax
        jnz 1f
        mov rcx, gs:[nr_drivers]
        mov gs:[drivers + rcx*8], rbx
        inc qword ptr gs:[nr_drivers]
1:      pop rbx
        RETURN
END driver_register

# driver_probe(driver): lets the driver find its device, then adds that; 0 or an error.
FUNC driver_probe
        push rbx
        mov rbx, rdi
        call qword ptr [rbx + DRV_PROBE]
        test rax, rax
        jnz 1f
        mov rdi, rbx
        call device_add
1:      pop rbx
        RETURN
END driver_probe

# device_add(driver): makes its device known to its class and gives it a node; 0 or an error.
FUNC device_add
        push rbx
        mov rbx, rdi
        call qword ptr [rbx + DRV_REGISTER]
        test rax, rax
        jnz 1f
        mov rdi, rbx
        call devtmpfs_create_node
1:      pop rbx
        RETURN
END device_add

# devtmpfs_create_node(driver): /dev/<name>; 0 or an error.
FUNC devtmpfs_create_node
        push rbx
        sub rsp, 40                     # "/dev/" and NAME_MAX
        mov rbx, rdi
        mov rdi, rsp
        lea rsi, [rip + .Ldev_prefix]
        call strcpy
        lea rdi, [rsp + 5]
        mov rsi, [rbx + DRV_NAME]
        call strcpy
        mov rdi, rsp
        mov rsi, [rbx + DRV_MODE]
        or esi, 0x1b6
        mov rdx, [rbx + DRV_RDEV]
        call sys_mknod
        add rsp, 40
        pop rbx
        RETURN
END devtmpfs_create_node

# cdev_add(driver): for a character device with a major number of its own.
FUNC cdev_add
        mov rsi, [rdi + DRV_FOPS]
        mov rdi, [rdi + DRV_RDEV]
        shr rdi, 8
        call register_chrdev
        RETURN
END cdev_add

# add_disk(driver): for a block device.
FUNC add_disk
        mov rsi, [rdi + DRV_FOPS]
        mov rdi, [rdi + DRV_RDEV]
        shr rdi, 8
        call register_blkdev
        RETURN
END add_disk

# device_open(file, bytes): gives the file a zeroed context; 0 or -ENOMEM.
FUNC device_open
        push rbx
        push r12
        mov rbx, rdi
        mov r12, rsi
        mov rdi, rsi
        call kmalloc
        mov [rbx + F_PRIVATE], rax
        test rax, rax
        mov rax, E_NOMEM
        jz 1f
        mov rdi, rbx
        mov rsi, r12
        call device_reset
1:      pop r12
        pop rbx
        RETURN
END device_open

# device_reset(file, bytes): zeroes the file's context; 0.
FUNC device_reset
        mov rdi, [rdi + F_PRIVATE]
        mov rdx, rsi
        xor esi, esi
        call memset
        xor eax, eax
        RETURN
END device_reset

# device_release(file): frees the context; 0.
FUNC device_release
        mov rdi, [rdi + F_PRIVATE]
        call kfree
        xor eax, eax
        RETURN
END device_release

# device_suspend(driver): 0 or -EBUSY.
FUNC device_suspend
        call qword ptr [rdi + DRV_SUSPEND]
        RETURN
END device_suspend

# device_resume(driver): 0 or -EINVAL.
FUNC device_resume
        call qword ptr [rdi + DRV_RESUME]
        RETURN
END device_resume

# dpm_next_device(): rax = the driver whose turn it is, or 0 if there are none.
FUNC dpm_next_device
        xor eax, eax
        cmp qword ptr gs:[nr_drivers], 0
        je 2f
        mov rcx, gs:[dpm_cursor]
        inc qword ptr gs:[dpm_cursor]
        cmp rcx, gs:[nr_drivers]
        jb 1f
        xor ecx, ecx
        mov qword ptr gs:[dpm_cursor], 1
1:      mov rax, gs:[drivers + rcx*8]
2:      RETURN
END dpm_next_device

# dpm_cycle(): suspends the next device and resumes it. Preemption is off between the two, so no
# task ever finds it suspended.
FUNC dpm_cycle
        push rbx
        PREEMPT_DISABLE
        call dpm_next_device
        mov rbx, rax
        test rax, rax
        jz 1f
        mov rdi, rax
        call device_suspend
        test rax, rax
        jnz 1f
        mov rdi, rbx
        call device_resume
1:      PREEMPT_ENABLE
        pop rbx
        RETURN
END dpm_cycle

.section .rodata
.Ldev_prefix: .asciz "/dev/"
