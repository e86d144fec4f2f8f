"""The fixture ``explore`` for tests of people's own protocols (docs/explore.md)."""
