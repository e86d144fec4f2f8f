"""What runs in the machine: images, symbols, the assembler, the guest/host contract."""
