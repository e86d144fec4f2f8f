"""ELF files as images: read, linked, call sites found, our runtime put beside them, started."""
