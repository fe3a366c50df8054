"""Mirrors of the kernel headers: numbers and layouts, no behaviour."""
