"""Runs every interleaving of a patching protocol and what it patches, and checks each."""
