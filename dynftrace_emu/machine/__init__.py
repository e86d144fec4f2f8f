"""An emulated x86-64 SMP computer on Unicorn; it knows nothing of ftrace."""
