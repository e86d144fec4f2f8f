"""What debug information says of addresses: source lines, functions, inlined calls."""
